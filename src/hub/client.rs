//! Asking a hub: what a repository holds, what a file will be, and a file's bytes from some place on.
//!
//! Redirections of files are followed here: the hub's own answer names the commit and the hash, and the token goes to
//! nobody but the hub.

use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};
use reqwest::blocking::{Client, ClientBuilder, Response};
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, LOCATION, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};
use ureq::tls::{RootCerts, TlsConfig};

use super::error::HubError;
use super::listing::Listing;
use super::name::{CommitHash, HubId, Revision};
use crate::artifacts::manifest::FileName;
use crate::artifacts::partial_file::{Announced, ContentHash};
use crate::settings::HubSettings;
use crate::tls;

/// The longest list of a repository's files that is read, in bytes. A few hundred bytes a file are usual.
const LONGEST_LISTING: u64 = 32 << 20;
const MOST_REDIRECTIONS: usize = 10;
/// Characters of what a hub says that are told.
const TOLD: usize = 300;
const REPO_COMMIT: &str = "x-repo-commit";
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";
const ERROR_MESSAGE: &str = "x-error-message";

/// A hub that is asked.
pub struct HubClient {
    api: Api,
    http: Client,
    endpoint: Url,
    token: Option<String>,
    patience: Duration,
}

/// One file of a repository at a commit.
#[derive(Debug)]
pub struct RemoteFile<'r> {
    pub id: &'r HubId,
    pub commit: &'r CommitHash,
    pub name: &'r FileName,
}

/// Why a file's bytes are not to be had.
#[derive(Debug)]
pub enum FileTrouble {
    /// Asking again may help.
    Passing(String),
    Final(HubError),
}

impl From<HubError> for FileTrouble {
    fn from(error: HubError) -> Self {
        FileTrouble::Final(error)
    }
}

impl HubClient {
    /// The hub of the settings; nothing is asked yet.
    pub fn new(settings: &HubSettings) -> Result<Self, HubError> {
        if settings.offline {
            return Err(HubError::Offline);
        }
        // The clients have no cryptography of their own.
        tls::choose();
        let unreachable = |problem: String| HubError::Unreachable {
            endpoint: settings.endpoint.clone(),
            problem,
        };
        let endpoint = settings.endpoint.trim_end_matches('/');
        let address = Url::parse(endpoint).map_err(|error| unreachable(error.to_string()))?;
        let token = Some(settings.token.clone()).filter(|token| !token.is_empty());
        // Its cache is not used, and a place that is nobody's home keeps it from looking there for a token.
        let api = ApiBuilder::from_cache(Cache::new("/nonexistent/hub".into()))
            .with_endpoint(endpoint.to_owned())
            .with_token(token.clone())
            .with_user_agent("causeway", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|error| unreachable(error.to_string()))?;
        let patience = Duration::from_secs(settings.patience_seconds);
        let options = || {
            ClientBuilder::new()
                .user_agent(concat!("causeway/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .connect_timeout(patience)
                // For an answer, and for each further part of one.
                .timeout(patience)
        };
        // A machine without certificates can still ask without TLS.
        let http = options()
            .build()
            .or_else(|_| options().tls_certs_only([]).build())
            .map_err(|error| unreachable(innermost(&error)))?;
        Ok(HubClient {
            api,
            http,
            endpoint: address,
            token,
            patience,
        })
    }

    /// What a repository holds at the commit that a revision is now.
    pub fn listing(&self, id: &HubId, revision: &Revision) -> Result<Listing, HubError> {
        let what = format!("model {id} at revision {revision}");
        let trusted = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier);
        let answer = self
            .repository(id, revision.as_str())
            .info_request()
            // Sizes and hashes too.
            .query("blobs", "true")
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(self.patience))
            .tls_config(trusted.build())
            .build()
            .call();
        let mut answer = answer.map_err(|error| self.unreachable(innermost(&error)))?;
        let status = answer.status().as_u16();
        if status != 200 {
            let said = answer.headers().get(ERROR_MESSAGE);
            let said = said.map(|said| String::from_utf8_lossy(said.as_bytes()).into_owned());
            return Err(self.refusal(status, what, said));
        }
        let json = answer
            .body_mut()
            .with_config()
            .limit(LONGEST_LISTING)
            .read_to_vec()
            .map_err(|error| self.unreachable(innermost(&error)))?;
        Listing::parse(&json).map_err(|problem| self.senseless(&what, problem))
    }

    /// What a file will be, where the listing does not say it.
    pub fn announced(&self, file: &RemoteFile) -> Result<Announced, HubError> {
        let (what, mut url) = (file.to_string(), self.file_url(file)?);
        for _ in 0..MOST_REDIRECTIONS {
            let response = self.send(Method::HEAD, &url, None);
            let response = response.map_err(|problem| self.unreachable(problem))?;
            let (status, headers) = (response.status(), response.headers());
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(status.as_u16(), what, text(headers, ERROR_MESSAGE)));
            }
            self.check_commit(file, headers)?;
            let linked = text(headers, LINKED_ETAG);
            if status.is_redirection() && linked.is_none() {
                url = self
                    .next(&url, headers)
                    .map_err(|problem| self.senseless(&what, problem))?;
                continue;
            }
            let etag = linked.or_else(|| text(headers, ETAG.as_str()));
            let hash = etag.and_then(|etag| ContentHash::of_text(opaque(&etag)));
            let size =
                text(headers, LINKED_SIZE).or_else(|| text(headers, CONTENT_LENGTH.as_str()));
            let size = size.and_then(|size| size.parse().ok());
            return match (size, hash) {
                (Some(size), Some(hash)) => Ok(Announced { size, hash }),
                _ => {
                    let problem = "neither the list of files nor this answer says how long the file is and which hash \
                        it has, so it could not be checked";
                    Err(self.senseless(&what, problem.to_owned()))
                }
            };
        }
        Err(self.senseless(&what, "it leads from one address to the next".to_owned()))
    }

    /// The bytes of a file from `from` on; a hub may also answer with all of them.
    pub fn bytes(
        &self,
        file: &RemoteFile,
        from: u64,
        announced: &Announced,
    ) -> Result<Response, FileTrouble> {
        let (what, mut url) = (file.to_string(), self.file_url(file)?);
        for _ in 0..MOST_REDIRECTIONS {
            let response = self.send(Method::GET, &url, (from > 0).then_some(from));
            let response = response.map_err(FileTrouble::Passing)?;
            let (status, headers) = (response.status(), response.headers());
            let is_hub = self.is_hub(&url);
            if is_hub {
                self.check_commit(file, headers)?;
                self.check_hash(&what, headers, announced)?;
            }
            if status.is_redirection() {
                let next = self.next(&url, headers);
                url = next.map_err(|problem| self.senseless(&what, problem))?;
                continue;
            }
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(response);
            }
            // Who keeps the files for the hub lets them be read for a while; the hub says anew where they are.
            let passing = !is_hub
                || status.is_server_error()
                || status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT;
            return Err(match passing {
                true => FileTrouble::Passing(format!("{} answered {status}", host(&url))),
                false => {
                    let said = text(headers, ERROR_MESSAGE);
                    self.refusal(status.as_u16(), what, said).into()
                }
            });
        }
        let problem = "it leads from one address to the next".to_owned();
        Err(self.senseless(&what, problem).into())
    }

    fn repository(&self, id: &HubId, revision: &str) -> hf_hub::api::sync::ApiRepo {
        let repo = Repo::with_revision(id.to_string(), RepoType::Model, revision.to_owned());
        self.api.repo(repo)
    }

    fn file_url(&self, file: &RemoteFile) -> Result<Url, HubError> {
        let url = self
            .repository(file.id, file.commit.as_str())
            .url(file.name.as_str());
        Url::parse(&url).map_err(|error| self.senseless(&file.to_string(), error.to_string()))
    }

    fn send(&self, method: Method, url: &Url, from: Option<u64>) -> Result<Response, String> {
        let mut request = self.http.request(method, url.clone());
        // A range is of the bytes as they are.
        request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.bearer_auth(token);
        }
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.send().map_err(|error| innermost(&error))
    }

    fn is_hub(&self, url: &Url) -> bool {
        let of = |url: &Url| {
            (
                url.scheme().to_owned(),
                host(url),
                url.port_or_known_default(),
            )
        };
        of(url) == of(&self.endpoint)
    }

    /// Where an answer leads.
    fn next(&self, url: &Url, headers: &HeaderMap) -> Result<Url, String> {
        let location = text(headers, LOCATION.as_str()).ok_or("it leads nowhere")?;
        let next = url.join(&location).map_err(|error| error.to_string())?;
        match (url.scheme(), next.scheme()) {
            (_, "https") | ("http", "http") => Ok(next),
            _ => Err(format!("it leads to {}, which is not https", host(&next))),
        }
    }

    fn check_commit(&self, file: &RemoteFile, headers: &HeaderMap) -> Result<(), HubError> {
        match text(headers, REPO_COMMIT) {
            Some(other) if other != file.commit.as_str() => {
                let problem = format!("the answer is of commit {}", shortened(&other));
                Err(self.senseless(&file.to_string(), problem))
            }
            _ => Ok(()),
        }
    }

    fn check_hash(
        &self,
        what: &str,
        headers: &HeaderMap,
        announced: &Announced,
    ) -> Result<(), HubError> {
        let etag = text(headers, LINKED_ETAG).or_else(|| text(headers, ETAG.as_str()));
        let hash = etag.and_then(|etag| ContentHash::of_text(opaque(&etag)));
        let same_kind = |hash: &ContentHash| {
            std::mem::discriminant(hash) == std::mem::discriminant(&announced.hash)
        };
        match hash.filter(same_kind) {
            Some(hash) if hash != announced.hash => {
                let problem = "the hash in its answer is not the one in the list of files";
                Err(self.senseless(what, problem.to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn endpoint(&self) -> String {
        self.endpoint.as_str().trim_end_matches('/').to_owned()
    }

    fn unreachable(&self, problem: String) -> HubError {
        HubError::Unreachable {
            endpoint: self.endpoint(),
            problem,
        }
    }

    /// For what it says that cannot be.
    pub fn senseless(&self, what: &str, problem: String) -> HubError {
        HubError::Senseless {
            endpoint: self.endpoint(),
            what: what.to_owned(),
            problem,
        }
    }

    fn refusal(&self, status: u16, what: String, said: Option<String>) -> HubError {
        let endpoint = self.endpoint();
        let said = said.map_or(String::new(), |said| format!(" ({})", shortened(&said)));
        let advice = match (status, self.token.is_some()) {
            (401, false) => {
                "if there is such a model, it is gated or private: give a token of somebody who may read it as \
                 hub.token, or in CAUSEWAY_HUB__TOKEN"
            }
            (401, true) => {
                "if there is such a model, the token of hub.token is not valid or not of somebody who may read it"
            }
            (_, false) => {
                "it is gated: ask for access on its page, and give a token of that account as hub.token, or in \
                 CAUSEWAY_HUB__TOKEN"
            }
            (_, true) => "it is gated: ask for access on its page with the account of hub.token",
        };
        match status {
            401 | 403 => HubError::Closed {
                endpoint,
                what,
                said,
                advice,
            },
            404 => HubError::NotFound {
                endpoint,
                what,
                said,
            },
            _ => HubError::Answer {
                endpoint,
                what,
                status,
                said,
            },
        }
    }
}

impl std::fmt::Display for RemoteFile<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let commit = &self.commit.as_str()[..12];
        write!(formatter, "{} of model {} at {commit}", self.name, self.id)
    }
}

/// What is at the bottom of an error; the layers above it say only that there is one.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// An entity tag without its quotes.
fn opaque(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// What a stranger says, as one short line.
fn shortened(said: &str) -> String {
    let printable = said.chars().filter(|letter| !letter.is_control());
    printable.take(TOLD).collect()
}
