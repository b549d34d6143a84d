//! Who may see the endpoint, as the file says that protects it: read again whenever it has changed. Never what is in such
//! a file.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;

use super::web_config::{WebConfig, WebConfigError};

/// Whether the files have changed is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// Passwords that were right are remembered: a hash takes 50 ms and more, which is what it is for.
const REMEMBERED: usize = 64;
/// So many are checked at a time, so that wrong ones do not take the CPU from the programs on this machine.
const CHECKED_AT_ONCE: usize = 1;
/// Checked in place of the hash of a user that there is not, so that both take the same time.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuu5LKM4KiKGWl2gnd7Q.m1tuGSDqb1V8.";

/// The file, and what it said last.
pub struct Protection {
    path: Option<PathBuf>,
    state: Mutex<State>,
    checking: Semaphore,
}

struct State {
    config: Arc<WebConfig>,
    /// When the files were changed last.
    stamps: Vec<Option<SystemTime>>,
    looked: Instant,
    refusal: Option<String>,
    /// Digests of users, their hashes and their right passwords.
    right: HashSet<Vec<u8>>,
}

impl Protection {
    /// None at all.
    pub fn none() -> Protection {
        Protection::new(None, WebConfig::default())
    }

    /// As the file says.
    ///
    /// # Errors
    /// It is refused.
    pub fn read(path: PathBuf) -> Result<Protection, WebConfigError> {
        let config = WebConfig::read(&path)?;
        Ok(Protection::new(Some(path), config))
    }

    fn new(path: Option<PathBuf>, config: WebConfig) -> Protection {
        let state = State {
            stamps: stamps(&config),
            config: Arc::new(config),
            looked: Instant::now(),
            refusal: None,
            right: HashSet::new(),
        };
        Protection { path, state: Mutex::new(state), checking: Semaphore::new(CHECKED_AT_ONCE) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What holds now. A file that has become bad changes nothing, and is said once.
    pub fn current(&self) -> Arc<WebConfig> {
        let mut state = self.state();
        let Some(path) = &self.path else { return Arc::clone(&state.config) };
        if state.looked.elapsed() < LOOK {
            return Arc::clone(&state.config);
        }
        state.looked = Instant::now();
        let now = stamps(&state.config);
        if now != state.stamps {
            state.stamps = now;
            match WebConfig::read(path) {
                Ok(config) => {
                    log::info!("read `{}` again", path.display());
                    state.stamps = stamps(&config);
                    (state.config, state.refusal) = (Arc::new(config), None);
                    state.right.clear();
                }
                Err(e) => {
                    log::error!("the endpoint is protected as before: {e}");
                    state.refusal = Some(e.to_string());
                }
            }
        }
        Arc::clone(&state.config)
    }

    /// Why the file is not used as it is now; `None` where it is. The outer is `None` where there is no file.
    pub fn refusal(&self) -> Option<Option<String>> {
        self.path.as_ref().map(|_| self.state().refusal.clone())
    }

    /// Whether a request may be answered: its user and password are right, or need not be told.
    pub async fn admits(&self, headers: &HeaderMap) -> bool {
        let config = self.current();
        if config.users.is_empty() {
            return true;
        }
        let Some((user, password)) = credentials(headers) else { return false };
        let known = config.users.get(&user);
        let hash = known.map_or(NOBODY, String::as_str).to_owned();
        let key = digest(&SHA256, format!("{user}\0{hash}\0{password}").as_bytes()).as_ref().to_vec();
        if self.state().right.contains(&key) {
            return true;
        }
        let Ok(_turn) = self.checking.acquire().await else { return false };
        let checked = tokio::task::spawn_blocking(move || bcrypt::verify(password, &hash).unwrap_or(false));
        let right = checked.await.unwrap_or(false) && known.is_some();
        if right {
            let mut state = self.state();
            if state.right.len() >= REMEMBERED {
                state.right.clear();
            }
            state.right.insert(key);
        }
        right
    }
}

fn stamps(config: &WebConfig) -> Vec<Option<SystemTime>> {
    config.files.iter().map(|file| fs::metadata(file).and_then(|metadata| metadata.modified()).ok()).collect()
}

/// User and password of a request that tells them by the Basic scheme.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    fn basic(text: &str) -> HeaderMap {
        headers(&format!("Basic {}", BASE64_STANDARD.encode(text)))
    }

    fn protected() -> Protection {
        let users = [("alice".to_owned(), bcrypt::hash("a:b", 4).unwrap())].into();
        Protection::new(None, WebConfig { users, ..WebConfig::default() })
    }

    #[tokio::test]
    async fn only_the_right_password_is_admitted() {
        let protection = protected();
        for (headers, admitted) in [
            (basic("alice:a:b"), true),
            (basic("alice:a:b"), true),
            (basic("alice:a"), false),
            (basic("alice:"), false),
            (basic("bob:a:b"), false),
            (basic("alice"), false),
            (headers("Bearer x"), false),
            (headers("Basic !"), false),
            (HeaderMap::new(), false),
        ] {
            assert_eq!(protection.admits(&headers).await, admitted, "{headers:?}");
        }
        assert!(Protection::none().admits(&HeaderMap::new()).await);
    }

    #[test]
    fn the_hash_of_nobody_can_be_checked() {
        assert!(!bcrypt::verify("", NOBODY).unwrap());
    }
}
