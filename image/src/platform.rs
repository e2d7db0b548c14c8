//! Platforms: which images of an index run on this host.

use oci_spec::image::{Arch, Os};

/// An operating system and a processor, with the names of the Go toolchain (OCI image index, `platform`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The operating system: `linux`.
    pub os: String,
    /// The processor: `amd64`, `arm64`, `riscv64` ...
    pub architecture: String,
    /// The variant of the processor, such as `v7` of 32-bit ARM.
    pub variant: Option<String>,
}

impl Default for Platform {
    /// Returns the platform of this host.
    fn default() -> Self {
        Self {
            os: Os::default().to_string(),
            architecture: Arch::default().to_string(),
            variant: cfg!(target_arch = "arm").then(|| "v7".to_owned()),
        }
    }
}

impl Platform {
    /// Returns the platform with the names of the Go toolchain. Builders also write the names of `uname` or
    /// of the vendor, in upper or lower case (containerd accepts them as well,
    /// github.com/containerd/platforms, "Normalize").
    fn normalized(&self) -> Self {
        let variant = self.variant.as_deref().unwrap_or_default().to_ascii_lowercase();
        let architecture = self.architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686", _) => ("386", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            (architecture, variant) => (architecture, variant),
        };
        let variant = match variant {
            "" => None,
            number if number.starts_with(|c: char| c.is_ascii_digit()) => Some(format!("v{number}")),
            other => Some(other.to_owned()),
        };
        Self { os: self.os.to_ascii_lowercase(), architecture: architecture.to_owned(), variant }
    }

    /// Returns whether operating system and processor are specified.
    pub(crate) fn is_specified(&self) -> bool {
        !self.os.is_empty() && !self.architecture.is_empty()
    }

    /// Returns how well an offered platform fits: higher is better, `None` does not run here.
    pub(crate) fn rank(&self, offered: &Self) -> Option<u32> {
        let offered = offered.normalized();
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let ours = self.variant.as_deref().and_then(level).unwrap_or_else(|| self.base_level());
        let theirs = match offered.variant.as_deref() {
            None | Some("") => return Some(1),
            Some(variant) => level(variant)?,
        };
        // A higher level includes the lower ones, so the highest level that runs is the best.
        (theirs <= ours).then_some(theirs + 1)
    }

    /// Returns the minimum level of a processor whose variant is not specified.
    fn base_level(&self) -> u32 {
        match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

fn level(variant: &str) -> Option<u32> {
    // In "v8.1" the part after the dot is a set of optional features, which the host may lack. Such a variant
    // has no level.
    variant.strip_prefix('v').and_then(|number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
    }

    fn best<'a>(host: &str, offers: &[&'a str]) -> Option<&'a str> {
        let host = platform(host);
        offers
            .iter()
            .filter_map(|offer| Some((host.rank(&platform(offer))?, *offer)))
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, offer)| offer)
    }

    #[test]
    fn the_best_fit_is_chosen() {
        assert_eq!(
            best("linux/amd64", &["linux/arm64/v8", "linux/amd64", "windows/amd64"]),
            Some("linux/amd64")
        );
        assert_eq!(best("linux/amd64", &["linux/amd64/v3", "linux/amd64/v1"]), Some("linux/amd64/v1"));
        assert_eq!(best("linux/amd64/v3", &["linux/amd64/v2", "linux/amd64"]), Some("linux/amd64/v2"));
        assert_eq!(best("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"]), Some("linux/arm64/v8"));
        assert_eq!(
            best("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64"]),
            Some("linux/arm/v6")
        );
        assert_eq!(best("linux/arm/v6", &["linux/arm/v7"]), None);
        assert_eq!(best("linux/amd64", &["unknown/unknown", "linux/s390x"]), None);
        assert_eq!(best("linux/amd64", &["Linux/x86_64"]), Some("Linux/x86_64"));
        assert_eq!(best("linux/amd64", &["linux/AMD64", "linux/i386"]), Some("linux/AMD64"));
        assert_eq!(best("linux/arm64", &["linux/aarch64/8"]), Some("linux/aarch64/8"));
        assert_eq!(best("linux/arm/v7", &["linux/armhf", "linux/armel"]), Some("linux/armhf"));
        assert_eq!(best("linux/386", &["LINUX/i686"]), Some("LINUX/i686"));
    }
}
