//! Who asks: API keys, their roles and their rates. Health and what describes the API are open to everybody: a browser
//! sends no key with a page, and these are the same for every server. A server without keys, which listens to its own
//! machine unless told otherwise, is open altogether.

use std::num::NonZeroU32;

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::ApiError;
use crate::settings::keys::{KeySettings, Role, digest};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Whoever reaches the server, with a key or without.
    Everybody,
    /// Keys that may ask.
    Infer,
    /// Keys that may change what others see.
    Train,
    /// Keys that may do everything.
    Admin,
}

impl Access {
    /// The role that a key needs; none where no key is needed.
    pub fn role(self) -> Option<Role> {
        match self {
            Access::Everybody => None,
            Access::Infer => Some(Role::Infer),
            Access::Train => Some(Role::Train),
            Access::Admin => Some(Role::Admin),
        }
    }
}

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

    /// Whether a request with these headers may use a route: the caller's name, none where nobody has to say who
    /// they are.
    pub fn admit(&self, access: Access, headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
        let Some(key) = self.permitted(access, headers)? else {
            return Ok(None);
        };
        match key.rate.as_ref().map(RateLimiter::check) {
            Some(Err(until)) => Err(ApiError::RateLimited {
                wait: until.wait_time_from(DefaultClock::default().now()),
            }),
            Some(Ok(())) | None => Ok(Some(&key.name)),
        }
    }

    /// Whether a request that was let in may do what takes this access: a part of what its route does.
    pub fn allow(&self, access: Access, headers: &HeaderMap) -> Result<(), ApiError> {
        self.permitted(access, headers).map(|_| ())
    }

    /// The key of a request that may use a route, whatever its rate; none where nobody has to say who they are.
    fn permitted(&self, access: Access, headers: &HeaderMap) -> Result<Option<&Key>, ApiError> {
        let Some(needed) = access.role().filter(|_| !self.keys.is_empty()) else {
            return Ok(None);
        };
        let key = self.find(presented(headers)?)?;
        match key.role < needed {
            true => Err(ApiError::Forbidden {
                role: key.role,
                needed,
            }),
            false => Ok(Some(key)),
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
