//! Documents that are made from the program, and checks of the files an operator copies.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::paths::{self, find_program};

/// The reference of the command line, below the root.
const CLI: &str = "docs/cli.md";

/// The reference of the configuration files, below the root.
const CONFIGURATION: &str = "docs/configuration.md";

/// Daemons with an example configuration in `deploy/examples` and a unit in `deploy/systemd`.
const DAEMONS: &[&str] = &["blk", "switch", "controller"];

/// What the units start.
const INSTALLED_PROGRAM: &str = "/usr/bin/sluice";

/// Writes every generated document; returns their names.
pub fn write() -> anyhow::Result<Vec<&'static str>> {
    let documents = documents(&program()?)?;
    for (name, text) in &documents {
        fs::write(paths::root().join(name), text)?;
    }
    Ok(documents.into_iter().map(|(name, _)| name).collect())
}

/// Names and texts of the generated documents.
fn documents(program: &Path) -> anyhow::Result<Vec<(&'static str, String)>> {
    Ok(vec![(CLI, cli(program)?), (CONFIGURATION, configuration(program)?)])
}

/// Checks that the generated documents are up to date and that the example files work.
pub fn check() -> anyhow::Result<Vec<(String, anyhow::Result<()>)>> {
    let program = program()?;
    let mut checks = Vec::new();
    for (name, text) in documents(&program)? {
        checks.push((format!("{name} is up to date"), fresh(name, &text)));
    }
    checks.push(("the commands in the README are understood".into(), readme(&program)));
    for daemon in DAEMONS {
        checks
            .push((format!("the keys of {daemon} are those of its flags"), keys_are_known(&program, daemon)));
        checks
            .push((format!("the example configuration of {daemon} is accepted"), example(&program, daemon)));
        checks.push((format!("systemd accepts sluice-{daemon}.service"), unit(&program, daemon)));
    }
    Ok(checks)
}

fn program() -> anyhow::Result<PathBuf> {
    let program = paths::target().join("debug/sluice");
    ensure!(program.is_file(), "{} is not there; `cargo build` makes it", program.display());
    Ok(program)
}

/// Gives the program every command of the README with `--help` behind it: what stands before is parsed, nothing is done.
fn readme(program: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(paths::root().join("README.md"))?;
    let commands = text.lines().filter_map(|line| line.strip_prefix("    sluice "));
    let mut count = 0;
    for command in commands {
        let words = command.split_whitespace().filter(|word| *word != "&");
        run(Command::new(program).args(words).arg("--help")).with_context(|| format!("sluice {command}"))?;
        count += 1;
    }
    ensure!(count > 0, "there is no command in the README");
    Ok(())
}

fn fresh(name: &str, text: &str) -> anyhow::Result<()> {
    let there = fs::read_to_string(paths::root().join(name)).with_context(|| format!("reading {name}"))?;
    ensure!(there == text, "the program says something else now; run `cargo xtask docs`");
    Ok(())
}

/// The help of every command, as one document.
fn cli(program: &Path) -> anyhow::Result<String> {
    let mut text = "# The command line of sluice\n\n\
                    Made by `cargo xtask docs` from the program's own help.\n"
        .to_owned();
    let mut commands = vec![Vec::<String>::new()];
    while let Some(command) = commands.pop() {
        let help = help(program, &command)?;
        let name =
            std::iter::once("sluice").chain(command.iter().map(String::as_str)).collect::<Vec<_>>().join(" ");
        let depth = "#".repeat(2 + usize::from(command.len() > 1));
        text += &format!("\n{depth} {name}\n\n```text\n{}\n```\n", help.trim_end());
        // The last one pushed comes first: keep the order of the help.
        for name in subcommands(&help).into_iter().rev() {
            commands.push(command.iter().cloned().chain([name]).collect());
        }
    }
    Ok(text)
}

fn help(program: &Path, command: &[String]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(command)
        .arg("--help")
        // What decides how wide the help is, and values from the environment that it would show.
        .stdin(Stdio::null())
        .env("COLUMNS", "100")
        .env_remove("SLUICE_RUN_DIR")
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(output.status.success(), "sluice {} --help failed", command.join(" "));
    let text = String::from_utf8(output.stdout).context("the help is UTF-8")?;
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    Ok(lines.join("\n"))
}

/// Names of the commands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| !line.is_empty());
    // A name stands two columns in; longer indents are the rest of a description.
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// An option as the help describes it.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    flag: String,
    value: String,
    meaning: String,
}

/// The settings of a daemon: the options of its `run` that may also stand in the file.
fn settings(help: &str) -> Vec<Setting> {
    let mut settings: Vec<Setting> = Vec::new();
    for line in help.lines().skip_while(|line| *line != "Options:").skip(1) {
        let text = line.trim();
        let column = line.len() - line.trim_start().len();
        if text.starts_with('-') && column <= 6 {
            let option = text.split_once("--").map_or(text, |(_, option)| option);
            let (words, meaning) = option.split_once("  ").unwrap_or((option, ""));
            let (flag, value) = words.split_once(' ').unwrap_or((words, ""));
            let value = value.trim_matches(['<', '>']).to_owned();
            settings.push(Setting { flag: flag.to_owned(), value, meaning: meaning.trim().to_owned() });
        } else if let Some(setting) = settings.last_mut() {
            let gap = if setting.meaning.is_empty() || text.is_empty() { "" } else { " " };
            setting.meaning += &format!("{gap}{text}");
        }
    }
    settings.retain(|setting| !["config", "help", "version"].contains(&setting.flag.as_str()));
    settings
}

fn run_settings(program: &Path, daemon: &str) -> anyhow::Result<Vec<Setting>> {
    Ok(settings(&help(program, &[daemon.to_owned(), "run".to_owned()])?))
}

fn key(setting: &Setting) -> String {
    setting.flag.replace('-', "_")
}

/// The keys of every daemon's file, as one document.
fn configuration(program: &Path) -> anyhow::Result<String> {
    let mut text = "# Configuration files\n\n\
                    Made by `cargo xtask docs` from the program's own help.\n\n\
                    `sluice <daemon> run --config FILE` reads its settings from a TOML file. Every flag of `run` may stand in it, \
                    with `_` for `-`; a flag wins over the file. Unknown keys and bad values are errors, all reported at once; \
                    `sluice <daemon> check --config FILE` does nothing but look for them. Lists may be written `[\"a\", \"b\"]` \
                    or `\"a,b\"`. Examples lie in `deploy/examples`.\n"
        .to_owned();
    for daemon in DAEMONS {
        text += &format!("\n## sluice {daemon}\n\n| key | value | meaning |\n|---|---|---|\n");
        for setting in run_settings(program, daemon)? {
            let meaning = setting.meaning.replace('|', "\\|");
            let value = if setting.value.is_empty() {
                "true or false".into()
            } else {
                format!("`{}`", setting.value)
            };
            text += &format!("| `{}` | {value} | {meaning} |\n", key(&setting));
        }
    }
    Ok(text)
}

/// Shows the daemon a file with all the keys of the reference and one more: only that one may be strange to it.
fn keys_are_known(program: &Path, daemon: &str) -> anyhow::Result<()> {
    let settings = run_settings(program, daemon)?;
    ensure!(!settings.is_empty(), "the help of `sluice {daemon} run` lists no options");
    let lines: Vec<_> = settings.iter().map(|setting| format!("{} = \"\"\n", key(setting))).collect();
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("all.toml");
    fs::write(&file, lines.concat() + "no_such_key = 1\n")?;
    let output = Command::new(program).args([daemon, "check", "--config"]).arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "a bad file ended with {} instead of 2: {said}", output.status);
    let strange: Vec<_> = said.lines().filter(|line| line.contains("not a known key")).collect();
    ensure!(strange.len() == 1 && strange[0].contains("no_such_key"), "strange to {daemon}: {strange:#?}");
    Ok(())
}

fn example(program: &Path, daemon: &str) -> anyhow::Result<()> {
    let file = format!("deploy/examples/{daemon}.toml");
    run(Command::new(program).args([daemon, "check", "--config", &file]).current_dir(paths::root()))
}

fn unit(program: &Path, daemon: &str) -> anyhow::Result<()> {
    let name = format!("sluice-{daemon}.service");
    let text = fs::read_to_string(paths::root().join("deploy/systemd").join(&name))
        .with_context(|| format!("reading {name}"))?;
    ensure!(
        text.contains(&format!("ExecStart={INSTALLED_PROGRAM} {daemon} run")),
        "{name} does not start {daemon}"
    );
    // systemd looks whether the program is there: show it the one that was just built.
    let text = text.replace(INSTALLED_PROGRAM, &program.display().to_string());
    let dir = tempfile::tempdir()?;
    let file = dir.path().join(&name);
    fs::write(&file, text)?;
    let analyze = find_program("systemd-analyze").context("systemd-analyze is not installed")?;
    run(Command::new(analyze).args(["verify", "--man=no", "--recursive-errors=no"]).arg(file))
}

/// Runs a command that must succeed and say nothing on standard error.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("running {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{} {}", output.status, said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_in_the_help() {
        let help = "Run\n\nUsage: x\n\nOptions:\n      --config <FILE>    A file\n      --state-dir <DIR>  Where things\n                         \
                    stay\n  -n, --dry-run\n          Nothing\n\n          at all\n  -h, --help     Print help\n";
        let setting = |flag: &str, value: &str, meaning: &str| Setting {
            flag: flag.into(),
            value: value.into(),
            meaning: meaning.into(),
        };
        let expected =
            [setting("state-dir", "DIR", "Where things stay"), setting("dry-run", "", "Nothing at all")];
        assert_eq!(settings(help), expected);
    }

    #[test]
    fn commands_are_found_in_the_help() {
        let help = "Disks\n\nUsage: sluice <COMMAND>\n\nCommands:\n  blk     The storage daemon\n  volume  Volumes of the\n          storage daemon\n  \
                    help    Print this\n\nOptions:\n  -h  no command\n";
        assert_eq!(subcommands(help), ["blk", "volume"]);
        assert_eq!(subcommands("Usage: sluice fdb show\n"), Vec::<String>::new());
    }
}
