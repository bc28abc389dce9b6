//! The crash tester: a store over two simulated disks that lose power at any step, and a model of what each sector may
//! hold afterwards. Flushed is never lost, never older, never foreign; what is read once stays.
//!
//! Everything follows from seeds. `SLUICE_CRASH_STATES=1000000 cargo test -p tiering --test crash --release` looks at
//! a million states; a failure prints the seed that shows it.

mod damage;
mod faults;
mod hand;
mod model;
mod run;
mod world;

use run::{Finding, Run, Tally};
use std::time::Instant;
use tiering::Rule;
use world::Op;

/// Crash states a run of the suite looks at, at least.
fn states_wanted() -> u64 {
    std::env::var("SLUICE_CRASH_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

/// All sequences of the operations up to a length.
fn sequences(length: usize) -> Vec<Vec<Op>> {
    let mut all: Vec<Vec<Op>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..length {
        let until = all.len();
        for at in from..until {
            for op in Op::SHORT {
                let mut longer = all[at].clone();
                longer.push(op);
                all.push(longer);
            }
        }
        from = until;
    }
    all.remove(0);
    all
}

fn short_sequences(broken: Option<Rule>, tally: &mut Tally) -> Result<(), Finding> {
    for (number, ops) in sequences(3).into_iter().enumerate() {
        let seed = 1_000_000 + number as u64;
        Run::new(seed, broken).sequence(&ops, tally)?;
    }
    Ok(())
}

fn long_runs(broken: Option<Rule>, tally: &mut Tally, states: u64) -> Result<(), Finding> {
    let start = tally.distinct() as u64;
    let mut seed = 1;
    while (tally.distinct() as u64) < start + states {
        Run::new(seed, broken).long(60, tally)?;
        seed += 1;
    }
    Ok(())
}

#[test]
fn all_short_sequences_survive_every_cut() {
    let (mut tally, begin) = (Tally::default(), Instant::now());
    if let Err(finding) = short_sequences(None, &mut tally) {
        panic!("{finding}");
    }
    println!("short sequences: {tally} in {:.1} s", begin.elapsed().as_secs_f64());
    assert!(tally.distinct() >= 1500, "{tally}");
}

#[test]
fn long_runs_survive_every_cut() {
    let (mut tally, begin) = (Tally::default(), Instant::now());
    if let Err(finding) = long_runs(None, &mut tally, states_wanted()) {
        panic!("{finding}");
    }
    println!("long runs: {tally} in {:.1} s", begin.elapsed().as_secs_f64());
    assert!(tally.distinct() as u64 >= states_wanted());
    assert!(tally.covered(), "the runs did not reach what they are for: {tally}");
}

#[test]
fn every_broken_rule_is_noticed() {
    let mut killed = 0;
    for rule in Rule::ALL {
        let (mut tally, begin) = (Tally::default(), Instant::now());
        let quiet = if rule == Rule::OverwriteIsQuiet { run::quiet_overwrites(Some(rule)) } else { Ok(()) };
        let found = quiet.and_then(|()| match rule {
            Rule::LogErrorStops => run::failing_flushes(Some(rule), &mut tally, 4000),
            _ => long_runs(Some(rule), &mut tally, 4000),
        });
        match found {
            Err(finding) => {
                killed += 1;
                let first = finding.to_string().lines().next().unwrap_or_default().to_owned();
                println!(
                    "mutant {rule:?}: killed after {} states, {:.2} s: {first}",
                    tally.states,
                    begin.elapsed().as_secs_f64()
                );
            }
            Ok(()) => println!("mutant {rule:?}: SURVIVED {tally}"),
        }
    }
    println!("{killed} of {} mutants killed", Rule::ALL.len());
    assert_eq!(killed, Rule::ALL.len());
}

#[test]
fn overwrites_write_no_metadata() {
    run::quiet_overwrites(None).unwrap_or_else(|finding| panic!("{finding}"));
}

#[test]
fn failed_flushes_never_lose_what_was_promised() {
    let mut tally = Tally::default();
    run::failing_flushes(None, &mut tally, 300).unwrap_or_else(|finding| panic!("{finding}"));
    assert!(tally.states >= 300);
}

#[test]
fn the_model_itself_notices_loss_age_and_strangers() {
    model::self_test();
}

/// `SLUICE_CRASH_SEED=n` runs one long run again.
#[test]
#[ignore = "to look at one finding"]
fn one_long_run() {
    let seed = std::env::var("SLUICE_CRASH_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    Run::new(seed, None).long(60, &mut Tally::default()).unwrap_or_else(|finding| panic!("{finding}"));
}
