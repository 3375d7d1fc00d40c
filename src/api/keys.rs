//! Who asks: API keys, their roles and their rates. Health and what describes the API are open to everybody: a browser
//! sends no key with a page, and these are the same for every server. A server without keys, which listens to its own
//! machine unless told otherwise, is open altogether.

use std::num::NonZeroU32;

use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::ApiError;
use crate::settings::keys::{KeySettings, Role, digest};

/// The keys of one server.
pub struct Keys {
    keys: Vec<Key>,
}

struct Key {
    name: String,
    digest: [u8; 32],
    role: Role,
    rate: Option<DefaultDirectRateLimiter>,
}

impl Keys {
    /// From settings that were checked.
    pub fn new(settings: &[KeySettings]) -> Self {
        let key = |key: &KeySettings| {
            let quota = key.requests_per_minute.and_then(NonZeroU32::new);
            Some(Key {
                name: key.name.to_string(),
                digest: digest(&key.sha256)?,
                role: key.role,
                rate: quota.map(|quota| RateLimiter::direct(Quota::per_minute(quota))),
            })
        };
        Keys {
            keys: settings.iter().filter_map(key).collect(),
        }
    }

    /// Whether a request may be answered: the caller's name, none where nobody has to say who they are.
    pub fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<&str>, ApiError> {
        let Some(needed) = needed(method, path).filter(|_| !self.keys.is_empty()) else {
            return Ok(None);
        };
        let key = self.find(presented(headers)?)?;
        if key.role < needed {
            return Err(ApiError::Forbidden {
                role: key.role,
                needed,
            });
        }
        match key.rate.as_ref().map(RateLimiter::check) {
            Some(Err(until)) => Err(ApiError::RateLimited {
                wait: until.wait_time_from(DefaultClock::default().now()),
            }),
            Some(Ok(())) | None => Ok(Some(&key.name)),
        }
    }

    /// The key of this text. All are compared, each in full, whichever fits: the time tells nothing.
    fn find(&self, presented: &str) -> Result<&Key, ApiError> {
        let hash: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for key in &self.keys {
            if bool::from(key.digest.ct_eq(&hash)) {
                found = Some(key);
            }
        }
        found.ok_or(ApiError::Unauthorized("the API key is not known"))
    }
}

/// Whether everybody may ask there, with a key or without.
pub fn is_open(path: &str) -> bool {
    let health = matches!(path, "/healthz" | "/livez" | "/readyz");
    let description = matches!(path, "/" | "/openapi.json" | "/docs");
    health || description || path.starts_with("/docs/")
}

/// What a request needs; none where it is open to everybody.
fn needed(method: &Method, path: &str) -> Option<Role> {
    if is_open(path) {
        return None;
    }
    if path == "/v1/library" || path.starts_with("/v1/library/") {
        return Some(Role::Admin);
    }
    if path.starts_with("/v1/files") || path.starts_with("/v1/fine_tuning/") {
        return Some(Role::Train);
    }
    if path.starts_with("/v1/models/") && *method == Method::DELETE {
        return Some(Role::Train);
    }
    let changes = path.starts_with("/v1/features")
        && !matches!(*method, Method::GET | Method::HEAD)
        && path != "/v1/features/contrast"
        && !path.ends_with("/verify");
    Some(if changes { Role::Train } else { Role::Infer })
}

fn presented(headers: &HeaderMap) -> Result<&str, ApiError> {
    let value = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let key = value.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    key.ok_or(ApiError::Unauthorized(
        "an API key is needed: send `authorization: Bearer KEY`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changing_needs_more_than_asking() {
        for (method, path, role) in [
            (Method::GET, "/healthz", None),
            (Method::GET, "/docs/start.js", None),
            (Method::GET, "/docsearch", Some(Role::Infer)),
            (Method::GET, "/metrics", Some(Role::Infer)),
            (Method::GET, "/v1/features/a", Some(Role::Infer)),
            (Method::POST, "/v1/completions", Some(Role::Infer)),
            (Method::POST, "/v1/chat/completions", Some(Role::Infer)),
            (Method::POST, "/v1/features/contrast", Some(Role::Infer)),
            (Method::POST, "/v1/features/a/verify", Some(Role::Infer)),
            (Method::POST, "/v1/features", Some(Role::Train)),
            (Method::DELETE, "/v1/features/a", Some(Role::Train)),
            (Method::GET, "/v1/library", Some(Role::Admin)),
            (Method::POST, "/v1/library/a/load", Some(Role::Admin)),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
    }
}
