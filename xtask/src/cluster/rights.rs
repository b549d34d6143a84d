//! What the agent's account may do in the cluster: asked of the API server about it, and tried with its own token.

use anyhow::{Result, ensure};

use super::agent::NAMESPACE;
use super::keys::NODE_NAME;
use super::kubectl::Kubectl;

const ACCOUNT: &str = "system:serviceaccount:profiler:profiler-agent";
/// In kubectl's words: verb and resource, and whether it may.
const RIGHTS: [(&[&str], bool); 8] = [
    (&["list", "pods"], true),
    (&["watch", "pods"], true),
    (&["delete", "pods"], false),
    (&["create", "pods", "--subresource=exec"], false),
    (&["list", "secrets"], false),
    (&["list", "nodes"], false),
    (&["get", "nodes", "--subresource=proxy"], false),
    (&["create", "nodes", "--subresource=proxy"], false),
];

/// Compares what the API server says with the table.
pub fn as_told(kubectl: &Kubectl) -> Result<usize> {
    for (right, may) in RIGHTS {
        let question = [&["auth", "can-i"], right, &["--all-namespaces", "--as", ACCOUNT]].concat();
        // It fails where the answer is no.
        let answer = String::from_utf8_lossy(&kubectl.output(&question)?.stdout).trim().to_owned();
        let expected = if may { "yes" } else { "no" };
        ensure!(answer.starts_with(expected), "`kubectl {}`: {answer}, and not {expected}", question.join(" "));
    }
    Ok(RIGHTS.len())
}

/// Asks for things with a token, as the agent can; `kubectl` has no name of its own.
pub fn as_tried(kubectl: &Kubectl, token: &str) -> Result<usize> {
    let requests = [
        ("/api/v1/pods".to_owned(), true),
        (format!("/api/v1/pods?fieldSelector=spec.nodeName={NODE_NAME}"), true),
        ("/api/v1/secrets".to_owned(), false),
        (format!("/api/v1/namespaces/{NAMESPACE}/secrets"), false),
        (format!("/api/v1/nodes/{NODE_NAME}/proxy/pods"), false),
    ];
    for (path, may) in &requests {
        let output = kubectl.output(&["--token", token, "get", "--raw", path])?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let forbidden = words.contains("Forbidden") || words.contains("forbidden");
        ensure!(output.status.success() == *may && forbidden != *may, "`{path}` with the agent's token: {words}");
    }
    Ok(requests.len())
}
