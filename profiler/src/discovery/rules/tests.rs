//! Rules against processes.

use std::sync::Arc;

use super::*;

const RUNTIMES: &[&str] = &["tokio", "ruby"];

fn rule(action: Action, conditions: &[(Subject, &str)]) -> Result<Rule, String> {
    let conditions = conditions.iter().map(|(subject, glob)| (subject.clone(), Glob::new(glob))).collect();
    Rule::new(action, conditions, RUNTIMES)
}

fn include(conditions: &[(Subject, &str)]) -> Rule {
    rule(Action::Include, conditions).expect("a possible rule")
}

fn exclude(conditions: &[(Subject, &str)]) -> Rule {
    rule(Action::Exclude, conditions).expect("a possible rule")
}

fn web() -> Facts {
    Facts {
        executable: "/usr/local/bin/web-server".into(),
        command: "web-server".into(),
        cgroups: vec!["/".into(), "/system.slice/web.service".into()],
        identity: Identity { systemd_unit: Some("web.service".into()), ..Identity::default() },
        names: Names::None,
        final_names: false,
    }
}

fn boxed() -> Facts {
    let identity = Identity { container_id: Some("4f79".into()), pod_uid: Some("ac04".into()), systemd_unit: None };
    Facts { cgroups: vec!["/kubepods/podac04/4f79".into()], identity, ..web() }
}

/// Check what is decided of a process with Tokio, and how often its program was read for that.
fn check(rules: Vec<Rule>, facts: &Facts, expected: bool, reads: u32) {
    let mut read = 0;
    let rules = Rules::new(rules).expect("rules that make sense");
    let included = rules.decide(facts, || {
        read += 1;
        Some("tokio")
    });
    let included = included == Decision::Include;
    assert_eq!((included, read), (expected, reads), "{rules:?}");
}

#[test]
fn each_subject_is_looked_at() {
    use Subject::*;
    for (subject, glob, of, matches) in [
        (Executable, "/usr/*/web-*", web(), true),
        (Executable, "/usr/bin/*", web(), false),
        (Command, "web*", web(), true),
        (Command, "server", web(), false),
        (Cgroup, "/system.slice/*", web(), true),
        (Cgroup, "/system.slice", web(), false),
        (Unit, "web.service", web(), true),
        (Unit, "*", boxed(), false),
        (ContainerId, "*", boxed(), true),
        (ContainerId, "*", web(), false),
        (PodUid, "ac04", boxed(), true),
    ] {
        check(vec![include(&[(subject, glob)])], &of, matches, 0);
    }
    check(vec![include(&[(Runtime, "tok*")])], &web(), true, 1);
    check(vec![include(&[(Runtime, "ruby")])], &web(), false, 1);
}

#[test]
fn the_first_that_matches_decides() {
    let web_only = [(Subject::Command, "web*")];
    check(vec![exclude(&web_only), include(&[])], &web(), false, 0);
    check(vec![include(&web_only), exclude(&[(Subject::Runtime, "tokio")])], &web(), true, 0);
    check(vec![exclude(&[(Subject::Command, "db*")]), include(&[])], &web(), true, 0);
    check(vec![include(&[(Subject::Command, "db*")])], &web(), false, 0);
}

/// Check that all conditions must hold, and that a program is read once, and only where it decides.
#[test]
fn programs_are_read_last() {
    let both = |command| [(Subject::Runtime, "ruby"), (Subject::Command, command)];
    check(vec![include(&both("db*"))], &web(), false, 0);
    check(vec![exclude(&both("web*")), include(&[(Subject::Runtime, "tokio")])], &web(), true, 1);
    let mut none = 0;
    let nothing = || {
        none += 1;
        None
    };
    assert_eq!(Rules::of_any_node().decide(&web(), nothing), Decision::Exclude);
    assert_eq!(none, 1);
}

/// Check that names that are not known yet are waited for where they decide, and only there, and that nothing is read then.
#[test]
fn names_are_waited_for_where_they_decide() {
    use Decision::{Exclude, Include, Undecided};
    let label = || Subject::Label("app".to_owned());
    let rules = Rules::new(vec![
        exclude(&[(Subject::Command, "db*")]),
        include(&[(Subject::Namespace, "shop"), (Subject::Runtime, "tokio")]),
        exclude(&[(label(), "web*"), (Subject::Container, "side*")]),
        include(&[(label(), "web*")]),
    ])
    .expect("rules that make sense");
    let labels = || [("app".to_owned(), "web-1".to_owned())].into();
    let pod = |namespace: &str| Arc::new(PodNames { namespace: namespace.into(), name: "a".into(), labels: labels() });
    let (shop, other) = (pod("shop"), pod("other"));
    let known = |pod: &Arc<PodNames>, container: Option<&str>| Names::Known {
        pod: Arc::clone(pod),
        container: container.map(str::to_owned),
    };
    for (names, decided, finally) in [
        (Names::None, Exclude, Exclude),
        (Names::Awaited, Undecided, Exclude),
        (known(&shop, None), Include, Include),
        (known(&other, None), Undecided, Include),
        (known(&other, Some("side-car")), Exclude, Exclude),
        (known(&other, Some("web")), Include, Include),
    ] {
        let facts = Facts { names: names.clone(), ..boxed() };
        assert_eq!(rules.decide(&facts, || Some("tokio")), decided, "{names:?}");
        let facts = Facts { final_names: true, ..facts };
        assert_eq!(rules.decide(&facts, || Some("tokio")), finally, "finally {names:?}");
        let named = Facts { command: "db".into(), ..facts };
        assert_eq!(rules.decide(&named, || None), Exclude, "{names:?}");
    }
}

#[test]
fn what_can_never_match_is_refused() {
    use Subject::*;
    for (conditions, reason) in [
        (vec![(Command, "")], "is empty"),
        (vec![(Executable, "server")], "does not begin"),
        (vec![(Cgroup, "system.slice/*")], "does not begin"),
        (vec![(Command, "a-name-of-16-byt")], "15 bytes"),
        (vec![(Runtime, "tokyo")], "tokio, ruby"),
        (vec![(Unit, "web")], "web.service"),
        (vec![(Unit, "*"), (ContainerId, "*")], "exclude each other"),
        (vec![(Unit, "*"), (Pod, "*")], "exclude each other"),
    ] {
        let refusal = rule(Action::Include, &conditions).expect_err("an impossible rule");
        assert!(refusal.contains(reason), "{refusal}");
    }
    for possible in [(Command, "a-name-of-15-by*"), (Executable, "*/server"), (Unit, "web*"), (Unit, "web@?.service")] {
        assert!(rule(Action::Include, std::slice::from_ref(&possible)).is_ok(), "{possible:?}");
    }
}

#[test]
fn rules_that_nothing_comes_to_are_refused() {
    let named = [(Subject::Command, "web*")];
    for (rules, at, reason) in [
        (vec![include(&[]), exclude(&named)], 1, "`include all` is before it"),
        (vec![include(&[(Subject::Command, "*")]), exclude(&named)], 1, "is before it"),
        (vec![include(&named), exclude(&named)], 1, "the same conditions"),
        (vec![exclude(&named)], 0, "ever be watched"),
        (vec![], 0, "ever be watched"),
    ] {
        let (number, refusal) = Rules::new(rules).expect_err("rules without sense");
        assert!(number == at && refusal.contains(reason), "{number} {refusal}");
    }
}

#[test]
fn changes_are_told() {
    let [web, db] = ["web*", "db*"].map(|name| include(&[(Subject::Command, name)]));
    let rules =
        |list: &[&Rule]| Rules::new(list.iter().map(|rule| (*rule).clone()).collect()).expect("they make sense");
    assert_eq!(rules(&[&web]).changes(&rules(&[&db])), ["- include command=db*", "+ include command=web*"]);
    assert_eq!(rules(&[&web, &db]).changes(&rules(&[&db, &web])), ["the order of the rules"]);
    assert!(rules(&[&web]).changes(&rules(&[&web])).is_empty());
}
