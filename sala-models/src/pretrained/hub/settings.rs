//! Where the hub is, who asks, and where the cache lies.

use std::{env, path::PathBuf, time::Duration};

use hf_hub::HFClient;

use super::{Hub, HubError, download::Patience};
use crate::Result;

/// Settings of a [`Hub`]; what is not set comes from the environment.
// Not `Debug`: the token would be printed.
#[derive(Clone, Default)]
pub struct HubBuilder {
    endpoint: Option<String>,
    token: Option<String>,
    cache: Option<PathBuf>,
    offline: Option<bool>,
    tries: Option<usize>,
    pause: Option<Duration>,
}

impl HubBuilder {
    /// The hub's address; without one `HF_ENDPOINT`, or the public hub.
    #[must_use]
    pub fn endpoint(self, endpoint: impl Into<String>) -> Self {
        let endpoint = Some(endpoint.into());
        Self { endpoint, ..self }
    }

    /// Who asks; without one `HF_TOKEN`, or what `hf auth login` left in `HF_HOME`.
    #[must_use]
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = Some(token.into());
        Self { token, ..self }
    }

    /// The cache's folder; without one `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or in `~/.cache/huggingface`.
    #[must_use]
    pub fn cache(self, cache: impl Into<PathBuf>) -> Self {
        let cache = Some(cache.into());
        Self { cache, ..self }
    }

    /// Whether only the cache is looked at; without it, whether `HF_HUB_OFFLINE` is `1`, `true`, `yes` or `on`.
    #[must_use]
    pub fn offline(self, offline: bool) -> Self {
        let offline = Some(offline);
        Self { offline, ..self }
    }

    /// How often in turn a file may bring nothing before the download fails (5), and how long to wait after
    /// each break (one second).
    #[must_use]
    pub fn patience(self, tries: usize, pause: Duration) -> Self {
        let (tries, pause) = (Some(tries.max(1)), Some(pause));
        Self {
            tries,
            pause,
            ..self
        }
    }

    /// The hub with these settings.
    ///
    /// # Errors
    /// [`HubError::Client`] when the address is none.
    ///
    /// ```
    /// use sala_models::pretrained::Hub;
    ///
    /// let cache = tempfile::tempdir()?;
    /// let hub = Hub::builder().cache(cache.path()).offline(true).build()?;
    /// let error = hub.snapshot("gpt2", None).unwrap_err();
    /// assert!(error.to_string().contains("is not in the cache"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build(self) -> Result<Hub> {
        let tries = self.tries.unwrap_or(5);
        let pause = self.pause.unwrap_or(Duration::from_secs(1));
        // Each try of ours has tries of the client in it, for what fails before anything is sent.
        let mut client = HFClient::builder()
            .retry_max_attempts(tries.min(3))
            .retry_base_delay(pause / 4);
        if let Some(endpoint) = self.endpoint {
            client = client.endpoint(endpoint);
        }
        if let Some(token) = self.token {
            client = client.token(token);
        }
        if let Some(cache) = self.cache {
            client = client.cache_dir(cache);
        }
        let client = client.build().map_err(|source| HubError::Client {
            source: Box::new(source),
        })?;
        Ok(Hub {
            client,
            offline: self.offline.unwrap_or_else(offline_by_environment),
            patience: Patience { tries, pause },
        })
    }
}

fn offline_by_environment() -> bool {
    let value = env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].contains(&&*value.to_lowercase())
}
