//! The file that has the rules: TOML or YAML. What is wrong in it is said with its line, and nothing of it is used then.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::glob::Glob;
use super::rules::{Action, Rule, Rules, Subject};

/// A longer file is none.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("failed to read `{}`: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its name does not tell what it is.
    #[error("`{}` is neither TOML nor YAML by its name: it must end in .toml, .yaml or .yml", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// It is far too long.
    #[error("`{}` has {bytes} bytes, and a file of rules has {MAX_BYTES} at most", path.display())]
    Long {
        /// Which.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Something in it is wrong.
    #[error("`{}`, line {line}: {reason}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// Where, counted from 1.
        line: u64,
        /// What.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<R> {
    rules: Vec<R>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    action: WrittenAction,
    executable: Option<String>,
    command: Option<String>,
    cgroup: Option<String>,
    container_id: Option<String>,
    pod_uid: Option<String>,
    namespace: Option<String>,
    pod: Option<String>,
    container: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    unit: Option<String>,
    runtime: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenAction {
    Include,
    Exclude,
}

/// Reads the rules of a file. `runtimes` are the names of all that there are; `named` is whether the cluster is asked for names.
///
/// # Errors
/// It cannot be read, or something in it is wrong: what, and in which line.
pub fn read(path: &Path, runtimes: &[&str], named: bool) -> Result<Rules, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_BYTES {
        return Err(FileError::Long { path: path.to_owned(), bytes });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let parsed = match path.extension().and_then(OsStr::to_str) {
        Some("toml") => toml(&text),
        Some("yaml" | "yml") => yaml(&text),
        _ => return Err(FileError::Kind { path: path.to_owned() }),
    };
    let rules = parsed.and_then(|written| rules(written, runtimes, named));
    rules.map_err(|(line, reason)| FileError::Wrong { path: path.to_owned(), line, reason })
}

/// Rules with their lines; else a line and what is wrong there.
type Parsed = Result<Vec<(u64, WrittenRule)>, (u64, String)>;

fn toml(text: &str) -> Parsed {
    let line = |at: usize| 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count() as u64;
    match toml::from_str::<Written<toml::Spanned<WrittenRule>>>(text) {
        Ok(written) => Ok(written.rules.into_iter().map(|rule| (line(rule.span().start), rule.into_inner())).collect()),
        Err(e) => Err((line(e.span().map_or(0, |span| span.start)), one_line(e.message()))),
    }
}

fn yaml(text: &str) -> Parsed {
    match serde_saphyr::from_str::<Written<serde_saphyr::Spanned<WrittenRule>>>(text) {
        Ok(written) => Ok(written.rules.into_iter().map(|rule| (rule.defined.line(), rule.value)).collect()),
        Err(e) => {
            let e = e.without_snippet();
            Err((e.location().map_or(1, |at| at.line()), one_line(&e.to_string())))
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn rules(written: Vec<(u64, WrittenRule)>, runtimes: &[&str], named: bool) -> Result<Rules, (u64, String)> {
    let mut lines = Vec::with_capacity(written.len());
    let mut rules = Vec::with_capacity(written.len());
    for (line, rule) in written {
        let WrittenRule { action, executable, command, cgroup, container_id, pod_uid, namespace, .. } = rule;
        let WrittenRule { pod, container, labels, unit, runtime, .. } = rule;
        let conditions = [
            (Subject::Executable, executable),
            (Subject::Command, command),
            (Subject::Cgroup, cgroup),
            (Subject::ContainerId, container_id),
            (Subject::PodUid, pod_uid),
            (Subject::Namespace, namespace),
            (Subject::Pod, pod),
            (Subject::Container, container),
            (Subject::Unit, unit),
            (Subject::Runtime, runtime),
        ];
        let labels = labels.into_iter().map(|(label, glob)| (Subject::Label(label), Some(glob)));
        let conditions = conditions.into_iter().chain(labels);
        let conditions: Vec<_> = conditions.filter_map(|(subject, glob)| Some((subject, Glob::new(&glob?)))).collect();
        if let Some((name, _)) = conditions.iter().find(|(subject, _)| !named && subject.is_name()) {
            let key = name.key();
            return Err((
                line,
                format!("`{key}` is known to the Kubernetes API only, which is asked with --kubernetes"),
            ));
        }
        let action = match action {
            WrittenAction::Include => Action::Include,
            WrittenAction::Exclude => Action::Exclude,
        };
        rules.push(Rule::new(action, conditions, runtimes).map_err(|reason| (line, reason))?);
        lines.push(line);
    }
    Rules::new(rules).map_err(|(at, reason)| (lines.get(at).copied().unwrap_or(1), reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules of a file of this kind with this text, or what is wrong.
    fn parse(kind: &str, text: &str) -> Result<Rules, String> {
        let unique = format!("profiler-rules-{}-{:?}.{kind}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(unique);
        fs::write(&path, text).expect("a file of our own");
        let rules = read(&path, &["tokio"], true);
        fs::remove_file(&path).expect("a file of our own");
        rules.map_err(|e| e.to_string().replace(&path.display().to_string(), "FILE"))
    }

    const TOML: &str = "# Web only.\n[[rules]]\naction = \"exclude\"\ncommand = \"web-test*\"\n\n[[rules]]\naction = \"include\"\n\
                        executable = \"/usr/*\"\nruntime = \"tokio\"\n";
    const YAML: &str = "# Web only.\nrules:\n  - action: exclude\n    command: web-test*\n\n  - action: include\n\
                        \x20   executable: /usr/*\n    runtime: tokio\n";

    #[test]
    fn both_kinds_say_the_same() {
        let rules = parse("toml", TOML).expect("good TOML");
        assert_eq!(rules.len(), 2);
        assert_eq!(parse("yaml", YAML).as_ref(), Ok(&rules));
        assert_eq!(parse("yml", YAML), Ok(rules));
    }

    /// Check that what is wrong is said, in one line, with its line.
    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (from, to, toml_line, yaml_line, reason) in [
            ("command", "comand", 4, 4, "comand"),
            ("exclude", "maybe", 3, 3, "maybe"),
            ("tokio", "tokyo", 6, 6, "tokyo"),
            ("/usr/*", "usr/*", 6, 6, "begin with `/`"),
            ("command", "command =: [", 4, 4, ""),
            ("rules", "rule", 2, 2, "rule"),
        ] {
            for (kind, text, line) in [("toml", TOML, toml_line), ("yaml", YAML, yaml_line)] {
                let refusal = parse(kind, &text.replacen(from, to, if from == "rules" { 9 } else { 1 }));
                let refusal = refusal.expect_err("it is refused");
                let place = format!("`FILE`, line {line}: ");
                assert!(refusal.starts_with(&place), "{kind} {to}: {refusal}");
                assert!(refusal.contains(reason) && !refusal.contains('\n'), "{kind} {to}: {refusal}");
            }
        }
    }

    /// Check that names can be asked for in both kinds of file, and are refused where nobody tells them.
    #[test]
    fn names() {
        let toml = "[[rules]]\naction = \"include\"\nnamespace = \"shop\"\nlabels = { app = \"web*\" }\n";
        let yaml = "rules:\n  - action: include\n    namespace: shop\n    labels: { app: web* }\n";
        let rules = parse("toml", toml).expect("good TOML");
        assert!(rules.ask_for_names());
        assert_eq!(parse("yaml", yaml).as_ref(), Ok(&rules));
        let refusal = super::toml(toml).and_then(|written| super::rules(written, &[], false)).expect_err("not asked");
        assert!(
            refusal.0 == 1 && refusal.1.contains("`namespace`") && refusal.1.contains("--kubernetes"),
            "{refusal:?}"
        );
    }

    #[test]
    fn a_missing_part_is_named() {
        for (kind, text) in [("toml", "[[rules]]\ncommand = \"x\"\n"), ("yaml", "rules:\n  - command: x\n")] {
            let refusal = parse(kind, text).expect_err("no action");
            assert!(refusal.contains("action"), "{refusal}");
        }
        assert!(parse("toml", "").expect_err("no rules").contains("rules"));
        assert!(parse("yaml", "").is_err());
        assert!(parse("json", "{}").expect_err("no such kind").contains(".toml, .yaml"));
        assert!(read(Path::new("/no/such.toml"), &[], false).expect_err("none").to_string().contains("/no/such.toml"));
    }

    proptest::proptest! {
        /// Check that any text is refused or read, without a panic.
        #[test]
        fn any_text(text in "(rules:|\\[\\[rules\\]\\]|  - |action|[a-z:=\"\n {}\\[\\]*&!|>-]){0,40}") {
            drop((toml(&text), yaml(&text)));
        }
    }
}
