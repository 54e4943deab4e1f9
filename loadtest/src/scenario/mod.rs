//! Scenarios: what is sent, to what kind of engine and next hop, for how long, and what must hold. TOML files, some of them built in.

mod arrivals;
mod background;
pub mod greeting;
mod load_plan;
mod mix;
pub mod run;
pub mod runner;
mod running_engine;
mod seeds;
pub mod text;
mod under_test;

use std::path::{self, Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use load_plan::LoadPlan;

use crate::{
    input_file,
    sink::{
        arguments::parse_flapping,
        delay::ReplyDelay,
        fault::{Fault, Faults},
    },
    source::arguments::SECONDS_MAX,
};
use text::Text;

/// The built-in scenarios by name, in the order of a suite.
pub const BUILT_IN: [(&str, &str); 12] = [
    ("baseline", include_str!("../../scenarios/baseline.toml")),
    ("concurrent", include_str!("../../scenarios/concurrent.toml")),
    ("large", include_str!("../../scenarios/large.toml")),
    ("sustained", include_str!("../../scenarios/sustained.toml")),
    ("spike", include_str!("../../scenarios/spike.toml")),
    ("pooling", include_str!("../../scenarios/pooling.toml")),
    ("limits", include_str!("../../scenarios/limits.toml")),
    ("relay", include_str!("../../scenarios/relay.toml")),
    ("many-destinations", include_str!("../../scenarios/many-destinations.toml")),
    ("slow-clients", include_str!("../../scenarios/slow-clients.toml")),
    ("mixed-sizes", include_str!("../../scenarios/mixed-sizes.toml")),
    ("recovery-after-kill", include_str!("../../scenarios/recovery-after-kill.toml")),
];

/// A scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in results.
    pub name: String,
    /// What it shows, in a sentence.
    pub about: String,
    /// How long messages are begun.
    pub seconds: f64,
    /// What is measured.
    pub load: LoadPlan,
    /// What goes on beside it and is not measured.
    #[serde(default)]
    pub background: Option<LoadPlan>,
    /// The engine, where it is one of its own.
    #[serde(default)]
    pub engine: EnginePlan,
    /// The next hop. Absent: accepted mail is settled without a delivery.
    #[serde(default)]
    pub sink: Option<SinkPlan>,
    /// What must hold.
    #[serde(default)]
    pub expect: Expectations,
    /// The folder of its file, which its paths are relative to; of a built-in scenario, which has none, the working directory.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// The engine of a scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnginePlan {
    /// Settings by section, as in the engine's config file.
    pub settings: toml::Table,
    /// SIGKILL after so many seconds, and a new start at once.
    pub kill_after_s: Option<f64>,
}

/// The next hop of a scenario. The keys are those of `ringpost-load sink` that say how it behaves, but for `--without`, `--size-max` and `--down`:
/// it speaks SMTP with all extensions, and is there all the time unless it flaps. Its seed follows from that of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SinkPlan {
    /// How many next hops, each with a port of its own; domain number k goes to number k modulo this. At most 100.
    pub hosts: usize,
    /// What goes wrong: `STAGE:WHAT:PROBABILITY`.
    pub fault: Vec<String>,
    /// Up and down: `UP:DOWN`, seconds.
    pub flap: Option<String>,
    /// Replies are held back so long, milliseconds: a number, or a text as `--delay-ms` takes it.
    pub delay_ms: Text<ReplyDelay>,
    /// A sender and recipient are answered 451 until so many seconds after they first came.
    pub greylist_s: Option<f64>,
    /// Connections at once; further ones get 421.
    pub connections_max: Option<u64>,
    /// Connections at once from one address; further ones get 421.
    pub per_client_max: Option<u64>,
    /// Octets per second that each connection is read with.
    pub read_bytes_per_s: Option<u64>,
}

impl Default for SinkPlan {
    fn default() -> SinkPlan {
        SinkPlan {
            hosts: 1,
            fault: Vec::new(),
            flap: None,
            delay_ms: Text(ReplyDelay::None),
            greylist_s: None,
            connections_max: None,
            per_client_max: None,
            read_bytes_per_s: None,
        }
    }
}

/// What must hold at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Expectations {
    /// Errors by begun transactions, at most.
    pub error_share_max: f64,
    /// The same of the background, where there is one.
    pub background_error_share_max: f64,
    /// At least one reply of each of these codes came: the limit was met.
    pub codes: Vec<u16>,
    /// Acknowledged messages per second, at least.
    pub messages_per_s_min: f64,
    /// Shares of messages that came twice; 0: none.
    pub duplicate_share_max: f64,
    /// Nothing is lost or foreign. False where the next hop refuses for good, so that mail is bounced: then only damage is judged.
    pub account: bool,
    /// Queue empty within so many seconds after the last message, where there is a sink.
    pub drain_s_max: f64,
    /// Against a server that runs elsewhere, whose queue nobody can ask for: behind the last delivery that is owed the next hop stays until
    /// nothing has come for so many seconds, at most `drain_s_max`. What the server sends twice is seen when it comes by then.
    pub quiet_s: f64,
}

impl Default for Expectations {
    fn default() -> Expectations {
        Expectations {
            error_share_max: 0.0,
            background_error_share_max: 0.0,
            codes: Vec::new(),
            messages_per_s_min: 1.0,
            duplicate_share_max: 0.0,
            account: true,
            drain_s_max: 60.0,
            quiet_s: 2.0,
        }
    }
}

impl Scenario {
    /// Reads a scenario's text. `origin` names it in errors, and its folder is what relative paths in it begin from.
    ///
    /// # Errors
    /// Line, key, and what is allowed; a file that is not there or cannot be sent, with key, value and the path that was tried; a mix file that
    /// is wrong.
    pub fn parse(text: &str, origin: &str) -> Result<Scenario, String> {
        let folder = path::absolute(origin).ok().and_then(|origin| Some(origin.parent()?.to_owned())).unwrap_or_default();
        let read = || -> Result<Scenario, String> {
            let text = mix::read_mixes(text, &folder)?;
            let scenario = Scenario { folder: folder.clone(), ..toml::from_str(&text).map_err(|error| error.to_string())? };
            scenario.check()?;
            Ok(scenario)
        };
        read().map_err(|error| format!("{origin}: {error}"))
    }

    /// The same course within so many seconds: ramps and spikes, of the background, too, and the kill keep their share of the run, so that each
    /// phase of it comes. Steady rates stay, and what the next hop does in seconds of its own.
    pub fn within(&self, seconds: f64) -> Scenario {
        let factor = seconds / self.seconds;
        let mut scenario = Scenario { seconds, ..self.clone() };
        for load in std::iter::once(&mut scenario.load).chain(&mut scenario.background) {
            load.rate = load.rate.take().map(|rate| Text(rate.0.stretched(factor)));
        }
        scenario.engine.kill_after_s = self.engine.kill_after_s.map(|after| after * factor);
        scenario
    }

    /// A built-in scenario by name, else a file.
    ///
    /// # Errors
    /// No such name and no such file: the names there are; or what [`Scenario::parse`] says.
    pub fn find(name: &str) -> Result<Scenario, String> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Scenario::parse(text, name);
        }
        let text = input_file::read_text(Path::new(name), input_file::TEXT_BYTES_MAX).map_err(|error| {
            if error.kind() != std::io::ErrorKind::NotFound {
                return format!("{name}: {error}");
            }
            let names: Vec<&str> = BUILT_IN.iter().map(|&(name, _)| name).collect();
            format!("{name} is no built-in scenario ({}) and no file: {error}", names.join(", "))
        })?;
        Scenario::parse(&text, name)
    }

    /// Can it run on this machine, with so many cores for its load?
    ///
    /// # Errors
    /// Scenario, key, value and what is allowed.
    pub fn check_here(&self, cores: usize) -> Result<(), String> {
        self.loads().try_for_each(|(name, load)| load.check_here(cores).map_err(|error| format!("{}: [{name}] {error}", self.name)))
    }

    fn loads(&self) -> impl Iterator<Item = (&'static str, &LoadPlan)> {
        std::iter::once(("load", &self.load)).chain(self.background.iter().map(|load| ("background", load)))
    }

    fn check(&self) -> Result<(), String> {
        if !(0.1..=86_400.0).contains(&self.seconds) {
            return Err(format!("seconds = {:?}: a run lasts from 0.1 s to a day", self.seconds));
        }
        // The name is that of folders and files.
        if self.name.is_empty()
            || self.name.len() > 80
            || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            || self.name.starts_with('.')
        {
            return Err(format!("name = {:?}: a name has 1 to 80 letters, digits, -, _ and ., and does not begin with a dot", self.name));
        }
        if self.name == "suite" {
            return Err("name = \"suite\": that is the file of all results of a call".into());
        }
        if let Some(after) = self.engine.kill_after_s
            && !(0.0..self.seconds).contains(&after)
        {
            return Err(format!("[engine] kill_after_s = {after:?}: the kill is within the {} seconds of the run", self.seconds));
        }
        self.expect.check().map_err(|error| format!("[expect] {error}"))?;
        for (name, load) in self.loads() {
            load.check(&self.folder).map_err(|error| format!("[{name}] {error}"))?;
        }
        let Some(sink) = &self.sink else { return Ok(()) };
        let (faults, _) = sink.parts().map_err(|error| format!("[sink] {error}"))?;
        match faults.bounces().filter(|_| self.expect.account) {
            Some(fault) => Err(format!(
                "[sink] fault = \"{fault}\": mail that is refused for good is bounced, and the ledgers would call it lost; say account = false \
                 in [expect] if they are not to be judged"
            )),
            None => Ok(()),
        }
    }
}

impl Expectations {
    fn check(&self) -> Result<(), String> {
        for (name, share) in [
            ("error_share_max", self.error_share_max),
            ("background_error_share_max", self.background_error_share_max),
            ("duplicate_share_max", self.duplicate_share_max),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("{name} = {share:?}: a share is from 0 to 1"));
            }
        }
        for (name, value) in [("messages_per_s_min", self.messages_per_s_min), ("drain_s_max", self.drain_s_max), ("quiet_s", self.quiet_s)]
        {
            if value.is_nan() || value < 0.0 {
                return Err(format!("{name} = {value:?}: 0 at least"));
            }
        }
        Ok(())
    }
}

impl SinkPlan {
    /// Its faults and flapping.
    pub(crate) fn parts(&self) -> Result<(Faults, Option<crate::sink::Flapping>), String> {
        if !(1..=100).contains(&self.hosts) {
            return Err(format!("hosts = {}: there are 1 to 100", self.hosts));
        }
        if let Some(greylist_s) = self.greylist_s.filter(|greylist_s| !(0.0..=SECONDS_MAX).contains(greylist_s)) {
            return Err(format!("greylist_s = {greylist_s:?}: 0 at least, and at most {SECONDS_MAX:?}"));
        }
        for (name, value) in [
            ("connections_max", self.connections_max),
            ("per_client_max", self.per_client_max),
            ("read_bytes_per_s", self.read_bytes_per_s),
        ] {
            if value == Some(0) {
                return Err(format!("{name} = 0: 1 at least; leave it out for no limit"));
            }
        }
        let faults = self.fault.iter().map(|fault| fault.parse()).collect::<Result<Vec<Fault>, _>>();
        let faults = faults.map_err(|error| format!("fault = {error}"))?;
        let flapping = self.flap.as_deref().map(parse_flapping).transpose().map_err(|error| format!("flap = {error}"))?;
        Ok((Faults::new(faults), flapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{content, schedule::Rate, source::arguments::Cores};

    #[test]
    fn the_built_in_scenarios_are_read_and_survive_being_written() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::parse(text, name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(scenario.name, name);
            assert!(scenario.about.ends_with(['.', '?']), "{name}");
            assert_eq!(Scenario::parse(&toml::to_string(&scenario).unwrap(), name), Ok(scenario));
            serde_json::to_value(Scenario::find(name).unwrap()).unwrap();
        }
    }

    #[test]
    fn unknown_keys_are_named_with_their_line_and_what_is_allowed() {
        let text = "name = \"x\"\nabout = \"y\"\nseconds = 1\n[load]\nsession = 3\n";
        let error = Scenario::parse(text, "my.toml").unwrap_err();
        for part in ["my.toml", "line 5", "session", "sessions", "per_connection"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let error = Scenario::find("no-such").unwrap_err();
        assert!(error.contains("baseline") && error.contains("no-such"), "{error}");
        // One that is there and cannot be read is a file.
        assert!(Scenario::find("/").unwrap_err().starts_with("/: "));
    }

    /// What happened: a run of other seconds followed a schedule that its result did not have.
    #[test]
    fn a_course_within_other_seconds_keeps_its_phases() {
        let load = "rate = \"100..900/10\"\n[background]\nrate = \"spikes:1:9:4:1\"\n[engine]\nkill_after_s = 5\n";
        let text = format!("name = \"x\"\nabout = \"y\"\nseconds = 10\n[load]\n{load}");
        let short = Scenario::parse(&text, "f").unwrap().within(4.0);
        assert_eq!((short.seconds, short.engine.kill_after_s), (4.0, Some(2.0)));
        let rate = |load: &LoadPlan| load.rate.as_ref().unwrap().0.to_string();
        assert_eq!((rate(&short.load), rate(short.background.as_ref().unwrap())), ("100..900/4".into(), "spikes:1:9:1.6:0.4".into()));
        let steady = Scenario { load: LoadPlan { rate: Some(Text(Rate::Fixed(7.0))), ..LoadPlan::default() }, ..short };
        assert_eq!(rate(&steady.within(1.0).load), "7");
    }

    /// `rate = 500` was no rate, though `--rate 500` is one, and a wrong number as a delay was "any variant" that it did not match.
    #[test]
    fn what_is_a_number_on_the_command_line_may_be_one_in_a_scenario() {
        let read = |load: &str| Scenario::parse(&format!("name = \"x\"\nabout = \"y\"\nseconds = 1\n{load}"), "f");
        for (numbers, texts) in [
            ("[load]\nrate = 500\nsize = 1000\n", "[load]\nrate = \"500\"\nsize = \"1000\"\n"),
            ("[load]\nrate = 0.5\n[sink]\ndelay_ms = 2.5\n", "[load]\nrate = \"0.5\"\n[sink]\ndelay_ms = \"2.5\"\n"),
        ] {
            assert_eq!(read(numbers).unwrap(), read(texts).unwrap());
        }
        for (load, part) in [
            ("[load]\nrate = -5\n", "\"-5\" is no rate"),
            ("[load]\nsize = -4\n", "-4"),
            ("[load]\nrate = true\n", "a text or a number"),
            ("[load]\n[sink]\ndelay_ms = -1\n", "\"-1\""),
        ] {
            let error = read(load).unwrap_err();
            assert!(error.contains("line ") && error.contains(part), "{load}: {error}");
        }
    }

    /// What happened: mix files lay beside their scenario, and corpus, template and attachments were looked for where the call was made, when
    /// the server had been started.
    #[test]
    fn every_path_of_a_scenario_begins_from_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("mail")).unwrap();
        for name in ["mail/one.eml", "t.eml", "a.txt"] {
            std::fs::write(at(name), "Subject: x\r\n\r\ntext\r\n").unwrap();
        }
        let find = |load: &str| {
            std::fs::write(at("mine.toml"), format!("name = \"x\"\nabout = \"y\"\nseconds = 1\n[load]\n{load}")).unwrap();
            Scenario::find(at("mine.toml").to_str().unwrap())
        };
        let there = |path: &str| format!("{:?}", at(path).display().to_string());
        for (key, name, is_list) in [("corpus", "mail", false), ("template", "t.eml", false), ("attach", "a.txt", true)] {
            let line = |value: String| if is_list { format!("{key} = [{value}]\n") } else { format!("{key} = {value}\n") };
            for value in [format!("{name:?}"), format!("\"./mail/../{name}\""), there(name)] {
                let scenario = find(&line(value.clone())).unwrap();
                let read = scenario.load.options(&scenario.folder, ([127, 0, 0, 1], 25).into(), &Cores(vec![0]), 1.0);
                assert!(!matches!(read.unwrap().content, content::ContentKind::Text(_)), "{key} = {value}");
                // Results of one scenario are the same wherever it lies.
                assert!(toml::to_string(&scenario).unwrap().contains(&line(value)), "as it was written");
            }
            let error = find(&line("\"none.x\"".into())).unwrap_err();
            let told = format!("mine.toml: [load] {key} = \"none.x\": {}: No such file", at("none.x").display());
            assert!(error.contains(&told), "{error}");
        }
        let error = find("attach = [\"mail\"]\n").unwrap_err();
        assert!(error.contains("attach = \"mail\"") && error.contains("directory"), "{error}");
    }

    #[test]
    fn wrong_values_are_refused() {
        let base = "name = \"x\"\nabout = \"y\"\nseconds = 1\n";
        for (line, part) in [
            ("[load]\nsessions = 0\n", "[load] sessions = 0"),
            // Which of several it was, and what it was, was not said of these.
            ("[load]\ndomains = 0\n", "[load] domains = 0"),
            ("[load]\nthink_ms = 864000001\n", "[load] think_ms = 864000001: 864000000 at most"),
            ("[load]\nrate = 5\nthink_ms = 10\n", "[load] rate = 5 with think_ms: an open loop"),
            ("[load]\nabort = [\"mail:2\"]\n", "[load] abort = \"mail:2\": "),
            ("[load]\n[expect]\nmessages_per_s_min = -1\n", "[expect] messages_per_s_min = -1.0"),
            ("[load]\n[sink]\nflap = \"5\"\n", "[sink] flap = \"5\" is not UP:DOWN"),
            ("[load]\n[sink]\nfault = [\"dot:x:1\"]\n", "[sink] fault = \"dot:x:1\" is no fault"),
            ("[load]\n[sink]\ngreylist_s = -1\n", "[sink] greylist_s = -1.0"),
            // With these the next hop took nobody, and the queue was waited for in vain.
            ("[load]\n[sink]\nconnections_max = 0\n", "[sink] connections_max = 0"),
            ("[load]\n[sink]\nper_client_max = 0\n", "[sink] per_client_max = 0"),
            ("[load]\nrate = \"fast\"\n", "line 5"),
            ("[load]\nsize = \"4 parsecs\"\n", "line 5"),
            ("[load]\nabort = [\"mail:2\"]\n", "[load]"),
            ("[load]\nrecipients = 10001\n", "recipients"),
            // The command line refuses it, and a larger one was sent.
            ("[load]\nsize = 100\n", "[load] size = 100: "),
            ("[load]\nsize = \"@nowhere/mix\"\n", "size = \"@nowhere/mix\": the mix file /"),
            ("[load]\nsize = \"@nowhere/mix\"\n", "/nowhere/mix: No such file"),
            ("[load]\nmessages = 0\n", "messages"),
            // The command line refuses these, and here all messages were of the least.
            ("[load]\nsize = 100\n", "[load] size = 100: "),
            ("[load]\nsize = \"lognormal:100:1\"\n", "[load] size = lognormal:100:1:"),
            ("[load]\ntimeout_s = 0\n", "timeout_s"),
            ("[load]\ntimeout_s = nan\n", "timeout_s"),
            ("[load]\nbytes_per_s = 0\n", "bytes_per_s"),
            ("[load]\ncorpus = \"mail\"\nheader = [\"X-A: b\"]\n", "exclude each other"),
            ("[load]\nfrom_address = [\"here\"]\n", "line 5"),
            // These panicked when the kill was due.
            ("[load]\n[engine]\nkill_after_s = -1\n", "kill_after_s"),
            ("[load]\n[engine]\nkill_after_s = nan\n", "kill_after_s"),
            // The run was over before.
            ("[load]\n[engine]\nkill_after_s = 2\n", "kill_after_s"),
            ("[load]\n[expect]\nerror_share_max = -1\n", "error_share_max"),
            ("[load]\n[expect]\nbackground_error_share_max = 2\n", "[expect] background_error_share_max = 2.0"),
            ("[load]\n[expect]\ndrain_s_max = nan\n", "drain_s_max"),
            ("[load]\n[expect]\nquiet_s = -1\n", "[expect] quiet_s = -1.0"),
            ("[load]\n[sink]\nfault = [\"x\"]\n", "[sink]"),
            ("[load]\n[sink]\ndelay_ms = \"x\"\n", "line 6"),
            ("[load]\n[sink]\ngreylist_s = -1\n", "greylist_s"),
            ("[load]\n[sink]\nflap = \"x\"\n", "[sink]"),
            // These ran to their end and called the bounced mail lost.
            ("[load]\n[sink]\nfault = [\"rcpt:451:0.1\", \"dot:552:0.1\"]\n", "account"),
        ] {
            let error = Scenario::parse(&format!("{base}{line}"), "f").unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        // The last one's result was written over by that of all.
        for name in ["", "../x", ".x", "a b", "a/b", "suite"] {
            let error = Scenario::parse(&format!("name = \"{name}\"\nabout = \"y\"\nseconds = 1\n[load]\n"), "f").unwrap_err();
            assert!(error.contains("name"), "{name}: {error}");
        }
    }

    /// What happened: an address that this machine has not, or more sessions than a core carries, came up when the scenario's turn was.
    #[test]
    fn what_cannot_be_sent_from_this_machine_is_named_by_key() {
        let check = |load: &str| {
            let text = format!("name = \"x\"\nabout = \"y\"\nseconds = 1\n[load]\n{load}");
            Scenario::parse(&text, "f").unwrap().check_here(1)
        };
        assert_eq!(check("from_address = [\"127.0.0.2\"]\nsessions = 500000\n"), Ok(()));
        let error = check("[background]\nfrom_address = [\"192.0.2.1\"]\n").unwrap_err();
        assert!(
            error.starts_with("x: [background] from_address = \"192.0.2.1\": ") && error.contains("no address of this machine"),
            "{error}"
        );
        let error = check("sessions = 500001\n").unwrap_err();
        assert!(error.starts_with("x: [load] sessions = 500001: 500000 at most") && error.contains("--cores"), "{error}");
    }
}
