//! The owner of an address, as its file names it.

/// The owner of an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) container: String,
    pub(crate) interface: String,
}

impl Owner {
    /// The owner of an unreadable file.
    pub(super) fn unknown() -> Self {
        Self { container: String::new(), interface: String::new() }
    }

    /// Parses the content of a file. The oldest files contain no interface.
    pub(super) fn parse(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim);
        let container = lines.next().unwrap_or_default().to_owned();
        Self { container, interface: lines.next().unwrap_or_default().to_owned() }
    }

    pub(super) fn matches(&self, recorded: &Self) -> bool {
        self.container == recorded.container
            && (recorded.interface.is_empty() || self.interface == recorded.interface)
    }
}
