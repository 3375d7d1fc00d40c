//! `hub` of the settings: where models come from that are asked for by their ids on a hub, and what they may take.

use serde::{Deserialize, Serialize};

/// How models are brought from a hub that speaks Hugging Face's HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubSettings {
    /// Whether the server brings models that are asked for over the API.
    pub enabled: bool,
    /// Asks nothing of any hub: what would need one is refused.
    pub offline: bool,
    /// The hub's address, http:// or https://.
    pub endpoint: String,
    /// For models that are not open to everybody; empty for none.
    pub token: String,
    /// MiB that the files of one model may take.
    pub max_download_mib: u64,
    /// Models that are brought at a time.
    pub at_once: usize,
    /// Models that may wait for their turn.
    pub max_waiting: usize,
    /// Seconds after which a hub that says nothing is given up.
    pub patience_seconds: u64,
    /// How often a connection that breaks is made anew, with no byte between.
    pub retries: u32,
}

impl HubSettings {
    /// [`HubSettings::max_download_mib`] in bytes.
    pub fn max_download_bytes(&self) -> u64 {
        self.max_download_mib.saturating_mul(1 << 20)
    }

    /// What no single key can tell.
    pub(super) fn check(&self) -> Result<(), String> {
        let is_address = ["http://", "https://"]
            .iter()
            .any(|scheme| self.endpoint.len() > scheme.len() && self.endpoint.starts_with(scheme));
        if !is_address {
            return Err("hub.endpoint must begin with http:// or https://".to_owned());
        }
        if !self.token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("hub.token must be of visible ASCII characters, without spaces".to_owned());
        }
        for (name, value) in [
            ("max_download_mib", self.max_download_mib),
            ("at_once", self.at_once as u64),
            ("patience_seconds", self.patience_seconds),
        ] {
            if value == 0 {
                return Err(format!("hub.{name} is 0; at least 1 is needed"));
            }
        }
        Ok(())
    }
}

impl Default for HubSettings {
    fn default() -> Self {
        HubSettings {
            enabled: true,
            offline: false,
            endpoint: "https://huggingface.co".to_owned(),
            token: String::new(),
            max_download_mib: 16 << 10,
            at_once: 1,
            max_waiting: 8,
            patience_seconds: 30,
            retries: 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let with = |change: fn(&mut HubSettings)| {
            let mut settings = HubSettings::default();
            change(&mut settings);
            settings.check()
        };
        assert_eq!(with(|_| {}), Ok(()));
        for (change, blamed) in [
            (
                (|hub| hub.endpoint = "huggingface.co".to_owned()) as fn(&mut HubSettings),
                "hub.endpoint",
            ),
            (|hub| hub.endpoint = "https://".to_owned(), "hub.endpoint"),
            (|hub| hub.token = "two words".to_owned(), "hub.token"),
            (|hub| hub.token = "a\r\nb".to_owned(), "hub.token"),
            (|hub| hub.max_download_mib = 0, "hub.max_download_mib"),
            (|hub| hub.at_once = 0, "hub.at_once"),
            (|hub| hub.patience_seconds = 0, "hub.patience_seconds"),
        ] {
            let refused = with(change).expect_err(blamed);
            assert!(refused.contains(blamed), "{refused}");
        }
    }
}
