//! `berth image explain`: the servers that a pull would contact, the credentials it would use, and the servers'
//! answers.

use std::path::PathBuf;

use berth_proto::admin::admin_client::AdminClient;
use berth_proto::admin::{ExplainImageRequest, Explanation};
use clap::Args;

use super::pull::read_credentials;
use super::{ConfigSource, failure};
use crate::server::connect;

#[derive(Clone, Debug, Args)]
pub(super) struct ExplainArgs {
    /// Name of the image, such as busybox:1.36
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Read credentials from this file (user:password), as for pull
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    #[command(flatten)]
    source: ConfigSource,
}

pub(super) async fn run(args: ExplainArgs) -> Result<String, String> {
    let (username, password) =
        args.credentials.as_deref().map(read_credentials).transpose()?.unwrap_or_default();
    let config = args.source.load().map_err(|error| error.to_string())?;
    let channel = connect(&config.socket).await.map_err(|error| error.to_string())?;
    let request = ExplainImageRequest { image: args.image.clone(), username, password };
    let answer = AdminClient::new(channel).explain_image(request).await;
    let answer = answer.map_err(|status| failure("explain", &args.image, &status))?.into_inner();
    Ok(answer.explanations.iter().map(text).collect())
}

fn text(explanation: &Explanation) -> String {
    let mut text = format!("{}\n", explanation.reference);
    match explanation.policy.split_first() {
        None => text.push_str("  policy: none, all images are accepted\n"),
        Some((scope, rules)) => text.push_str(&format!("  policy: {} ({scope})\n", rules.join("; "))),
    }
    for (place, server) in explanation.servers.iter().enumerate() {
        let notes =
            if server.notes.is_empty() { String::new() } else { format!(" ({})", server.notes.join(", ")) };
        text.push_str(&format!("  {}. {}{notes}\n", place + 1, server.url));
        let credentials = if server.credentials.is_empty() { "none" } else { &server.credentials };
        text.push_str(&format!("     credentials: {credentials}\n"));
        for answer in &server.answers {
            text.push_str(&format!("     {answer}\n"));
        }
        match server.error.is_empty() {
            true => text.push_str(&format!("     found: {}\n", server.digest)),
            false => text.push_str(&format!("     {}\n", server.error)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::admin::ExplainedServer;

    #[test]
    fn an_explanation_is_read_from_top_to_bottom() {
        let server = ExplainedServer {
            url: "https://m.example/v2/a".to_owned(),
            notes: vec!["mirror".to_owned()],
            answers: vec!["HEAD https://m.example/v2/a/manifests/1: 404 Not Found".to_owned()],
            error: "manifest a:1 not found".to_owned(),
            ..ExplainedServer::default()
        };
        let own = ExplainedServer {
            url: "https://r.example/v2/a".to_owned(),
            credentials: "/etc/berth/auth.json: r.example".to_owned(),
            digest: "sha256:1".to_owned(),
            ..ExplainedServer::default()
        };
        let explanation = Explanation {
            reference: "r.example/a:1".to_owned(),
            policy: Vec::new(),
            servers: vec![server, own],
        };
        assert_eq!(
            text(&explanation),
            "r.example/a:1\n  policy: none, all images are accepted\n  \
             1. https://m.example/v2/a (mirror)\n     credentials: none\n     \
             HEAD https://m.example/v2/a/manifests/1: 404 Not Found\n     manifest a:1 not found\n  \
             2. https://r.example/v2/a\n     credentials: /etc/berth/auth.json: r.example\n     \
             found: sha256:1\n"
        );
    }
}
