//! What a pull would do, without pulling: the servers, who asks them, what they answer, and what the policy says.

use crate::credentials::Credentials;
use crate::error::Error;
use crate::policy;
use crate::reference::Reference;
use crate::registry::{self, Endpoint};
use crate::store::ImageStore;

/// What a pull of one name would come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The whole name.
    pub reference: String,
    /// The part of the policy that decides, and what it wants; empty where there is no policy.
    pub policy: Vec<String>,
    /// The servers in the order in which they are asked.
    pub servers: Vec<Server>,
}

/// One server that a pull would ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where the repository is, such as `https://registry-1.docker.io/v2/library/busybox`.
    pub url: String,
    /// What it is asked for, and how it is trusted.
    pub notes: Vec<String>,
    /// Where the credentials for it are from; none are its where that is empty.
    pub credentials: String,
    /// What was asked and answered, the way to a token included.
    pub answers: Vec<String>,
    /// The digest that it has for the name, or why there is none.
    pub outcome: Result<String, String>,
}

impl ImageStore {
    /// Explains a pull of a name, for each of what it may stand for. Every server is asked, also where a pull would have
    /// ended before.
    ///
    /// # Errors
    /// The name is none, or a file of the configuration is broken.
    pub async fn explain(&self, name: &str, auth: Option<Credentials>) -> Result<Vec<Explanation>, Error> {
        let mut explained = Vec::new();
        for reference in self.names(name).await? {
            explained.push(self.explain_one(&reference, auth.clone()).await?);
        }
        Ok(explained)
    }

    async fn explain_one(
        &self,
        reference: &Reference,
        auth: Option<Credentials>,
    ) -> Result<Explanation, Error> {
        let inner = self.inner();
        let ruling = match &inner.options.policy {
            Some(file) => policy::explain(file, reference).await?,
            None => None,
        };
        let policy = ruling.map(|ruling| [vec![ruling.scope], ruling.requirements].concat());
        let repository = inner.registry.repository(reference, auth).await?;
        let mut servers = Vec::new();
        for endpoint in repository.endpoints() {
            let (found, answers) = registry::traced(repository.probe(endpoint, reference)).await;
            servers.push(Server {
                url: format!(
                    "{}://{}{}/{}",
                    endpoint.scheme, endpoint.authority, endpoint.path, endpoint.repository
                ),
                notes: notes(endpoint),
                credentials: endpoint
                    .credentials
                    .as_ref()
                    .map(|known| known.source.clone())
                    .unwrap_or_default(),
                answers,
                outcome: found.map(|digest| digest.to_string()).map_err(|error| error.to_string()),
            });
        }
        Ok(Explanation { reference: reference.to_string(), policy: policy.unwrap_or_default(), servers })
    }
}

fn notes(endpoint: &Endpoint) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |holds: bool, text: &str| {
        if holds {
            notes.push(text.to_owned());
        }
    };
    note(endpoint.mirror, "mirror");
    note(!endpoint.pull, "only resolves tags");
    note(!endpoint.resolve, "not asked for tags");
    note(endpoint.tls.skip_verify, "its certificate is not verified");
    note(!endpoint.tls.ca.is_empty(), "with authorities of its own");
    note(!endpoint.tls.client.is_empty(), "with a client certificate");
    note(!endpoint.headers.is_empty(), "with further headers");
    notes
}
