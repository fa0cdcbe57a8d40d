//! How a command line could go on, as kubectl asks its plugins: a line for each word, then a number
//! that says what the shell may add by itself.

use std::fmt::Write;

use clap::{Arg, Command, ValueHint};

/// The shell may complete file names.
const FILES: &str = ":0\n";
/// The shell adds nothing.
const NO_FILES: &str = ":4\n";

/// The answer for `words`, the last of which is being written.
pub(crate) fn answer(top: &Command, words: &[String]) -> String {
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut command = top;
    let mut asking: Option<&Arg> = None;
    for word in before {
        asking = option(command, word);
        if asking.is_none()
            && let Some(found) = command.find_subcommand(word).filter(|found| !found.is_hide_set())
        {
            command = found;
        }
    }
    if let Some(asking) = asking.filter(|asking| asking.get_action().takes_values()) {
        return values(asking, last);
    }
    if last.starts_with('-') {
        let options = command.get_arguments().filter(|arg| !arg.is_hide_set());
        let long = options.filter_map(Arg::get_long).map(|long| format!("--{long}")).chain(["--help".into()]);
        return listed(long, last);
    }
    let mut positionals = command.get_positionals().peekable();
    if let Some(positional) = positionals.peek() {
        return values(positional, last);
    }
    let commands = command.get_subcommands().filter(|found| !found.is_hide_set());
    listed(commands.map(|found| found.get_name().to_owned()), last)
}

/// The option that a word is; `None` also for one that brings its value along.
fn option<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let is_named = |arg: &Arg| match word.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => word
            .strip_prefix('-')
            .is_some_and(|short| arg.get_short().map(String::from).as_deref() == Some(short)),
    };
    command.get_arguments().find(|arg| is_named(arg))
}

fn values(of: &Arg, begun: &str) -> String {
    let possible = of.get_possible_values();
    if possible.is_empty() {
        let is_file = matches!(of.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath);
        return if is_file { FILES } else { NO_FILES }.into();
    }
    listed(possible.iter().map(|value| value.get_name().to_owned()), begun)
}

fn listed(words: impl Iterator<Item = String>, begun: &str) -> String {
    let mut text = String::new();
    for word in words.filter(|word| word.starts_with(begun)) {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{word}");
    }
    text + NO_FILES
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::answer;

    fn after(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        answer(&crate::Cli::command(), &words)
    }

    #[test]
    fn commands_options_and_values_are_offered() {
        assert_eq!(after(&["p"]), "plan\n:4\n");
        assert_eq!(after(&["plan", "--from"]), "--from-cluster\n:4\n");
        assert_eq!(after(&["plan", "-o", ""]), "table\nyaml\njson\n:4\n");
        assert_eq!(after(&["completion", "ba"]), "bash\n:4\n");
        assert_eq!(after(&["vi"]), "view\n:4\n");
        assert_eq!(after(&["view", "--via", ""]), "auto\ndirect\nport-forward\n:4\n");
    }

    #[test]
    fn files_are_left_to_the_shell() {
        assert_eq!(after(&["plan", "-f", "x"]), ":0\n");
        assert_eq!(after(&["view", "--screenshot", ""]), ":0\n");
        assert_eq!(after(&["why", "a", "-n", ""]), ":4\n");
    }
}
