//! Runs many seeds of the disk model: `ringpost-disk-model --seeds N [--from S] [--control NAME] [--shards yes]`. Exits 1 at the first loss.

use std::process::ExitCode;
use std::time::Instant;

use ringpost_sim::{Control, Counters, run, run_shards};

const USAGE: &str = "usage: ringpost-disk-model --seeds N [--from S] [--control NAME] [--shards yes]";

struct Arguments {
    seeds: u64,
    from: u64,
    control: Option<Control>,
    shards: bool,
}

fn main() -> ExitCode {
    let Arguments { seeds, from, control, shards } = match arguments() {
        Ok(arguments) => arguments,
        Err(what) => {
            eprintln!("{what}\n{USAGE}");
            let names: Vec<_> = Control::ALL.iter().map(|(name, _)| *name).collect();
            eprintln!("controls: {}", names.join(", "));
            return ExitCode::from(2);
        }
    };
    let (mut counters, begun) = (Counters::default(), Instant::now());
    for seed in from..from + seeds {
        match if shards { run_shards(seed, control) } else { run(seed, control) } {
            Ok(met) => counters.add(&met),
            Err(loss) => {
                println!("LOSS {loss}");
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    for (name, count) in counters.all() {
        println!("{name:32} {count:>12}");
    }
    println!("{:32} {:>12.0}", "seeds_per_second", seeds as f64 / seconds);
    println!("0 acknowledged lost in {seeds} seeds from {from}");
    ExitCode::SUCCESS
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { seeds: 0, from: 1, control: None, shards: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} needs a number, not {value}"));
        match word.as_str() {
            "--seeds" => parsed.seeds = number()?,
            "--from" => parsed.from = number()?,
            "--control" => parsed.control = Some(Control::named(&value).ok_or_else(|| format!("no control is called {value}"))?),
            "--shards" => parsed.shards = value == "yes",
            _ => return Err(format!("{word} is unknown")),
        }
    }
    if parsed.seeds == 0 { Err("how many seeds?".into()) } else { Ok(parsed) }
}
