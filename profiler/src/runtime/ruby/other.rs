//! Implementations of Ruby that are not MRI, by their command lines. Never what they do.

use crate::runtime::Command;

/// What they are, for people; `None` where the command is none of theirs.
pub fn named(command: &Command<'_>) -> Option<&'static str> {
    // The interpreter of its own, in its own directory: what else is in one of that name is somebody else's.
    let is_truffleruby_path =
        command.executable.split('/').any(|part| part == "truffleruby" || part.starts_with("truffleruby-"));
    let is_interpreter = command.name() == "truffleruby" || (command.name() == "ruby" && is_truffleruby_path);
    let argument = |is: fn(&str) -> bool| command.arguments.iter().any(|argument| is(argument));
    let is_java = command.name() == "java";
    if is_interpreter || (is_java && argument(is_truffleruby)) {
        return Some("TruffleRuby is not supported: its fibers and threads are those of its own virtual machine");
    }
    if is_java && argument(is_jruby) {
        return Some("JRuby is not supported: its fibers and threads are those of the Java virtual machine");
    }
    (command.name() == "mruby").then_some("mruby is not supported: it has no library that exports what MRI's does")
}

/// Whether a Java virtual machine is told to run JRuby: its main class, its home, or its jar in a class path.
fn is_jruby(argument: &str) -> bool {
    let is_jar = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.starts_with("jruby") && name.ends_with(".jar")
    };
    argument.starts_with("org.jruby.") || argument.starts_with("-Djruby.") || argument.split([':', '=']).any(is_jar)
}

/// The same of TruffleRuby.
fn is_truffleruby(argument: &str) -> bool {
    argument.starts_with("org.truffleruby.") || argument.starts_with("-Dorg.graalvm.language.ruby.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(executable: &str, arguments: &[&str]) -> Option<&'static str> {
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        named(&Command { executable, arguments: &arguments }).map(|why| why.split(' ').next().unwrap_or_default())
    }

    #[test]
    fn others_are_told_from_mri_and_from_other_programs() {
        const JAVA: &str = "/usr/lib/jvm/java-17-openjdk-amd64/bin/java";
        for (executable, arguments, named) in [
            (
                JAVA,
                &["java", "-Xss2048k", "-Djruby.home=/usr/share/jruby", "org.jruby.Main", "app.rb"][..],
                Some("JRuby"),
            ),
            (JAVA, &["java", "-jar", "/srv/jruby-complete-9.4.5.0.jar", "-S", "puma"], Some("JRuby")),
            (JAVA, &["java", "-Xbootclasspath/a:/opt/jruby/lib/jruby.jar:/opt/x.jar", "Main"], Some("JRuby")),
            (JAVA, &["java", "-cp", "/srv/jrubyish/app.jar", "Main"], None),
            (JAVA, &["java", "-jar", "/srv/server.jar", "org.jruby"], None),
            (JAVA, &["java", "org.truffleruby.launcher.RubyLauncher"], Some("TruffleRuby")),
            ("/opt/truffleruby-24.1.1/bin/ruby", &["ruby", "app.rb"], Some("TruffleRuby")),
            ("/usr/bin/truffleruby", &["truffleruby"], Some("TruffleRuby")),
            ("/srv/truffleruby-bench/target/release/server", &["server"], None),
            ("/usr/bin/mruby", &["mruby", "app.rb"], Some("mruby")),
            ("/usr/bin/ruby3.1", &["ruby", "-rjruby", "org.jruby.Main"], None),
            ("/usr/bin/sleep", &["sleep", "org.jruby.Main"], None),
            ("", &[], None),
        ] {
            assert_eq!(of(executable, arguments), named, "{executable} {arguments:?}");
        }
    }
}
