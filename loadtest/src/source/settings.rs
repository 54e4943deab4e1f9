//! What a call of `source` was told, as its result keeps it: `compare` names what of it differs between two.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{SourceOptions, arguments::SourceArguments};
use crate::content::ContentKind;

/// All that decides about the load, by the names of the options and, where they are the same, of a scenario's keys. What the options leave
/// open is here as it was chosen.
pub(super) fn settings(arguments: &SourceArguments, options: &SourceOptions) -> Value {
    // As text they may be anything: serde takes no path that is no UTF-8.
    let shown = |path: &PathBuf| path.to_string_lossy().into_owned();
    let size = match &options.content {
        ContentKind::Text(sizes) => Some(sizes.to_string()),
        _ => None,
    };
    json!({
        "to": arguments.to,
        "cores": options.cores,
        "sessions": options.sessions,
        "messages": options.messages,
        "seconds": options.duration.map(|duration| duration.as_secs_f64()),
        "rate": options.rate.map(|rate| rate.to_string()),
        "size": size,
        "per_connection": options.per_connection.unwrap_or(0),
        "linger": options.linger,
        "gently": options.gently,
        "pipelining": options.pipelining,
        "chunking": options.chunking,
        "lmtp": options.lmtp,
        "think_ms": arguments.think_ms,
        "bytes_per_s": options.bytes_per_s,
        "abort": options.aborts.iter().map(|(stage, probability)| format!("{stage}:{probability}")).collect::<Vec<_>>(),
        "recipients": options.recipients.per_message,
        "domains": options.recipients.domains,
        "spread": options.recipients.spread.to_string(),
        "domain": options.recipients.domain,
        "sender": options.reverse_path,
        "hello": options.hello,
        "from_address": arguments.from_address,
        "template": arguments.template.as_ref().map(shown),
        "header": arguments.header,
        "attach": arguments.attach.iter().map(shown).collect::<Vec<_>>(),
        "corpus": arguments.corpus.as_ref().map(shown),
        "ledger": options.ledger.is_some(),
        "seed": options.seed,
        "timeout_s": options.timeout.as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::{Cli, Command};

    /// Of the options these say where results go, how a run is shown, and what is looked at beside it.
    const NO_LOAD: [&str; 8] = ["name", "output", "json", "quiet", "live", "tui", "server_pid", "server_cores"];

    /// What happened: of most options a result only had the command line, and a comparison named none of them.
    #[test]
    fn every_option_that_decides_about_the_load_is_among_the_settings() {
        let call = [
            "ringpost-load",
            "source",
            "--to",
            "127.0.0.1:25",
            "--messages",
            "3",
            "--no-pipelining",
            "--abort",
            "mail:0.5",
            "--sender",
            "",
        ];
        let Command::Source(arguments) = Cli::try_parse_from(call).unwrap().command else { panic!("it is source") };
        let settings = settings(&arguments, &arguments.options().unwrap());
        let call = Cli::command();
        let options = call.find_subcommand("source").unwrap().get_arguments().map(|option| option.get_id().as_str());
        for option in options.filter(|option| !NO_LOAD.contains(option)) {
            let name = match option {
                "no_pipelining" => "pipelining",
                "timeout" => "timeout_s",
                other => other,
            };
            assert!(settings.get(name).is_some(), "{option}: {settings}");
        }
        assert_eq!((&settings["messages"], &settings["pipelining"], &settings["sender"]), (&3.into(), &false.into(), &"".into()));
        assert_eq!((&settings["abort"][0], &settings["spread"]), (&"mail:0.5".into(), &"uniform".into()));
    }
}
