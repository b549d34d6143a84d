//! Who is who in the cluster: keys, certificates and tokens of one run, by openssl. Never what they are used for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::room::{API_SERVER, NODE};

/// The name of the node.
pub const NODE_NAME: &str = "node";
/// Users of the API: name, groups.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("kube-controller-manager", "system:kube-controller-manager", ""),
    ("kube-scheduler", "system:kube-scheduler", ""),
    ("kubelet", "system:node:node", "system:nodes"),
];
/// Whose word is a token only, which they bring themselves.
const NOBODY: &str = "nobody";
const DAYS: &str = "2";

/// The folder of all keys.
pub struct Keys {
    folder: PathBuf,
}

impl Keys {
    /// Makes them.
    pub fn new(folder: &Path) -> Result<Keys> {
        fs::create_dir_all(folder)?;
        let keys = Keys { folder: folder.to_owned() };
        keys.openssl(&["genrsa", "-out", "accounts.key", "2048"])?;
        let new = ["req", "-newkey", "rsa:2048", "-nodes"];
        keys.openssl(
            &[&new[..], &["-x509", "-subj", "/CN=ca", "-days", DAYS, "-keyout", "ca.key", "-out", "ca.crt"]].concat(),
        )?;
        let names = format!("IP:{API_SERVER},IP:{NODE},IP:127.0.0.1,DNS:kubernetes.default.svc");
        keys.certificate(
            "server",
            "/CN=kube-apiserver",
            &format!("subjectAltName={names}\nextendedKeyUsage=serverAuth\n"),
        )?;
        keys.certificate("client", "/O=system:masters/CN=kube-apiserver", "extendedKeyUsage=clientAuth\n")?;
        let mut tokens = String::new();
        for (name, user, groups) in USERS {
            let token = random()?;
            tokens.push_str(&format!("{token},{user},{user},\"{groups}\"\n"));
            keys.configuration(name, json!({ "token": token }))?;
        }
        keys.configuration(NOBODY, json!({}))?;
        fs::write(keys.path("tokens"), tokens)?;
        Ok(keys)
    }

    /// A file of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// How a user reaches the API server.
    pub fn of(&self, user: &str) -> PathBuf {
        self.path(&format!("{user}.kubeconfig"))
    }

    /// How somebody does who has no word here but a token.
    pub fn of_nobody(&self) -> PathBuf {
        self.of(NOBODY)
    }

    fn configuration(&self, user: &str, word: serde_json::Value) -> Result<()> {
        let configuration = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{ "name": "here", "cluster": {
                "server": format!("https://{API_SERVER}"), "certificate-authority": self.path("ca.crt") } }],
            "users": [{ "name": user, "user": word }],
            "contexts": [{ "name": "here", "context": { "cluster": "here", "user": user } }],
        });
        Ok(fs::write(self.of(user), configuration.to_string())?)
    }

    fn certificate(&self, name: &str, subject: &str, extensions: &str) -> Result<()> {
        let [key, request, certificate, file] = ["key", "csr", "crt", "ext"].map(|kind| format!("{name}.{kind}"));
        fs::write(self.path(&file), extensions)?;
        self.openssl(&["req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", &key, "-out", &request])?;
        let signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", DAYS, "-extfile", &file];
        self.openssl(&[&["x509", "-req", "-in", &request, "-out", &certificate][..], &signed].concat())
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).current_dir(&self.folder).output().context("failed to run openssl")?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!(
                "failed to make keys: `openssl {}`: {}",
                arguments.join(" "),
                words.lines().last().unwrap_or_default()
            );
        }
        Ok(())
    }
}

/// A word that nobody guesses.
fn random() -> Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
