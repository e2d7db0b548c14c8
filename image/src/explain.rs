//! Explains a pull without pulling: the servers, the credentials for each, their answers, and the policy's
//! decision.

use crate::credentials::Credentials;
use crate::error::Error;
use crate::policy;
use crate::reference::Reference;
use crate::registry::{self, Endpoint};
use crate::store::ImageStore;

/// The explanation of a pull of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The complete reference.
    pub reference: String,
    /// The scope of the policy that applies, and its requirements. Empty without a policy.
    pub policy: Vec<String>,
    /// The servers in the order in which a pull tries them.
    pub servers: Vec<Server>,
}

/// One server that a pull would try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The URL of the repository, such as `https://registry-1.docker.io/v2/library/busybox`.
    pub url: String,
    /// The requests that it serves, and how it is trusted.
    pub notes: Vec<String>,
    /// The source of the credentials for this server. Empty if there are none.
    pub credentials: String,
    /// The requests and their answers, including those for a token.
    pub answers: Vec<String>,
    /// The digest that the server has for the name, or the reason why it has none.
    pub outcome: Result<String, String>,
}

impl ImageStore {
    /// Explains a pull of a name, for each reference that the name may resolve to. All servers are tried,
    /// also where a pull would have stopped earlier.
    ///
    /// # Errors
    /// The name is invalid, or a configuration file is invalid.
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
            let (probed, answers) = registry::traced(repository.probe(endpoint, reference)).await;
            servers.push(Server {
                url: format!(
                    "{}://{}{}/{}",
                    endpoint.scheme, endpoint.authority, endpoint.path, endpoint.repository
                ),
                notes: notes(endpoint),
                credentials: endpoint
                    .credentials
                    .as_ref()
                    .map(|credentials| credentials.source.clone())
                    .unwrap_or_default(),
                answers,
                outcome: probed.map(|digest| digest.to_string()).map_err(|error| error.to_string()),
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
    note(!endpoint.resolve, "not used to resolve tags");
    note(endpoint.tls.skip_verify, "its certificate is not verified");
    note(!endpoint.tls.ca.is_empty(), "with its own certificate authorities");
    note(!endpoint.tls.client.is_empty(), "with a client certificate");
    note(!endpoint.headers.is_empty(), "with additional headers");
    notes
}
