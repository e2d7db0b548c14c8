//! Debug output of credentials that does not contain them.

use std::fmt;

use crate::v1::AuthConfig;

/// Shows which credentials are present, but not their values.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = |secret: &str| if secret.is_empty() { "" } else { "***" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &present(&self.password))
            .field("auth", &present(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &present(&self.identity_token))
            .field("registry_token", &present(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_shown() {
        let auth = AuthConfig {
            username: "user".to_owned(),
            password: "hunter2".to_owned(),
            auth: "aHVudGVyMg==".to_owned(),
            server_address: "registry.example".to_owned(),
            identity_token: "token-a".to_owned(),
            registry_token: "token-b".to_owned(),
        };
        let shown = format!("{auth:?}");
        assert!(shown.contains("user") && shown.contains("registry.example"), "{shown}");
        for secret in ["hunter2", "aHVudGVyMg==", "token-a", "token-b"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
