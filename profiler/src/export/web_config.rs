//! The file that protects the endpoint, in the form of Prometheus' exporters (exporter-toolkit's web configuration): TLS,
//! and users. What is wrong in it is said, and nothing of it is used then. Never who may see what.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use serde::Deserialize;

/// A longer file is none.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {reason}", path.display())]
pub struct WebConfigError {
    path: PathBuf,
    reason: String,
}

/// What the file says.
#[derive(Default)]
pub struct WebConfig {
    /// How TLS is spoken; `None` where it is not.
    pub tls: Option<Arc<ServerConfig>>,
    /// Bcrypt hashes of passwords, by user; empty where nobody has to say who he is.
    pub users: BTreeMap<String, String>,
    /// All files that were read.
    pub files: Vec<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    tls_server_config: Option<WrittenTls>,
    basic_auth_users: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenTls {
    cert_file: PathBuf,
    key_file: PathBuf,
    client_auth_type: ClientAuth,
    client_ca_file: Option<PathBuf>,
    min_version: Option<Version>,
    max_version: Option<Version>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum ClientAuth {
    #[default]
    NoClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum Version {
    TLS12,
    TLS13,
}

impl WebConfig {
    /// Reads a file, and what it names. Names are relative to it.
    ///
    /// # Errors
    /// Something cannot be read, or makes no sense.
    pub fn read(path: &Path) -> Result<WebConfig, WebConfigError> {
        let failed = |reason: String| WebConfigError { path: path.to_owned(), reason };
        let length = fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
        if length > MAX_BYTES {
            return Err(failed(format!("{length} bytes are too many for such a file: {MAX_BYTES} at most")));
        }
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let mut config = WebConfig::parse(&text, path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        config.files.push(path.to_owned());
        Ok(config)
    }

    fn parse(text: &str, folder: &Path) -> Result<WebConfig, String> {
        // An empty file is no mapping, and means that nothing is protected.
        let empty = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        let written: Written =
            if empty { Written::default() } else { serde_saphyr::from_str(text).map_err(one_line)? };
        for (user, hash) in &written.basic_auth_users {
            // A hash that cannot be parsed would let nobody in, and that only when he comes.
            hash.parse::<bcrypt::HashParts>()
                .map_err(|e| format!("the password of user `{user}` is no bcrypt hash: {e}"))?;
        }
        let tls = written.tls_server_config;
        let files = tls.iter().flat_map(WrittenTls::files).map(|file| folder.join(file)).collect();
        let tls = tls.map(|tls| tls.load(folder)).transpose()?;
        Ok(WebConfig { tls: tls.map(Arc::new), users: written.basic_auth_users, files })
    }
}

/// What is wrong and where, without the piece of the file that shows it.
fn one_line(e: serde_saphyr::Error) -> String {
    e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

impl WrittenTls {
    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.cert_file, &self.key_file].into_iter().chain(&self.client_ca_file)
    }

    fn load(&self, folder: &Path) -> Result<ServerConfig, String> {
        let versions = self.versions()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificates = certificates("cert_file", &folder.join(&self.cert_file))?;
        let key_file = folder.join(&self.key_file);
        let key = PrivateKeyDer::from_pem_file(&key_file)
            .map_err(|e| format!("failed to read key_file `{}`: {e}", key_file.display()))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(|e| e.to_string())?;
        let builder = match (self.client_auth_type, &self.client_ca_file) {
            (ClientAuth::NoClientCert, None) => builder.with_no_client_auth(),
            (ClientAuth::NoClientCert, Some(_)) => {
                return Err("client_ca_file is of no use where client_auth_type is NoClientCert".to_owned());
            }
            (_, None) => return Err("client_auth_type takes a client_ca_file".to_owned()),
            (kind, Some(file)) => {
                let mut roots = rustls::RootCertStore::empty();
                for certificate in self::certificates("client_ca_file", &folder.join(file))? {
                    roots.add(certificate).map_err(|e| format!("client_ca_file has no certificate authority: {e}"))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if kind == ClientAuth::VerifyClientCertIfGiven {
                    verifier.allow_unauthenticated()
                } else {
                    verifier
                };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| e.to_string())?)
            }
        };
        let mut config = builder
            .with_single_cert(certificates, key)
            .map_err(|e| format!("cert_file and key_file do not go together: {e}"))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn versions(&self) -> Result<Vec<&'static rustls::SupportedProtocolVersion>, String> {
        let (least, most) = (self.min_version, self.max_version);
        if least == Some(Version::TLS13) && most == Some(Version::TLS12) {
            return Err("min_version is above max_version".to_owned());
        }
        let mut versions = Vec::new();
        if most != Some(Version::TLS12) {
            versions.push(&rustls::version::TLS13);
        }
        if least != Some(Version::TLS13) {
            versions.push(&rustls::version::TLS12);
        }
        Ok(versions)
    }
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |reason: String| format!("failed to read {key} `{}`: {reason}", path.display());
    let file = fs::File::open(path).map_err(|e| failed(e.to_string()))?;
    let certificates = CertificateDer::pem_reader_iter(BufReader::new(file)).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|e| failed(e.to_string()))?;
    if certificates.is_empty() { Err(failed("there is no certificate in it".to_owned())) } else { Ok(certificates) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, words: &str) {
        let error = WebConfig::parse(text, Path::new("/nowhere")).err().expect("it is refused");
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn nothing_is_protected_by_an_empty_file() {
        for text in ["", "# nothing\n"] {
            let config = WebConfig::parse(text, Path::new(".")).unwrap();
            assert!(config.tls.is_none() && config.users.is_empty());
        }
    }

    #[test]
    fn users_have_bcrypt_hashes() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let config = WebConfig::parse(&format!("basic_auth_users:\n  alice: {hash}\n"), Path::new(".")).unwrap();
        assert_eq!(config.users["alice"], hash);
        refused("basic_auth_users:\n  alice: secret\n", "the password of user `alice` is no bcrypt hash");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        refused("tls_server_confg: {}\n", "unknown field");
        refused("tls_server_config:\n  cert_file: c\n  key_file: k\n", "failed to read cert_file `/nowhere/c`");
        let tls = |more: &str| format!("tls_server_config:\n  cert_file: c\n  key_file: k\n  {more}\n");
        refused(&tls("min_version: TLS13\n  max_version: TLS12"), "min_version is above max_version");
        refused(&tls("min_version: TLS10"), "TLS10");
        refused(&tls("cipher_suites: [A]"), "cipher_suites");
    }
}
