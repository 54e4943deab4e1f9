//! What the documents point to exists: links, files, items, tests, dialogues, settings.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

fn documents() -> Vec<PathBuf> {
    let mut documents = files(&root().join("docs"), "md");
    documents.push(root().join("README.md"));
    assert!(documents.len() > 6, "{documents:?}");
    documents
}

/// What stands between backticks, outside of blocks of code.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn links_lead_to_files() {
    let mut missing = Vec::new();
    for document in documents() {
        for link in read(&document).split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !document.parent().unwrap().join(target).exists() {
                missing.push(format!("{}: {target}", shown(&document)));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn named_files_exist() {
    let mut missing = Vec::new();
    for document in documents() {
        let text = read(&document);
        for name in quoted(&text).filter(|name| name.contains('/') && !name.starts_with('/') && !name.contains(' ')) {
            let is_file = [".rs", ".toml", ".md"].iter().any(|ending| name.ends_with(ending));
            let places = [root().to_owned(), root().join("docs"), root().join("engine/smtp")];
            if is_file && !name.contains('<') && !places.iter().any(|place| place.join(name).exists()) {
                missing.push(format!("{}: {name}", shown(&document)));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Events with their fields, as the engine writes them into the mail log: what stands in a string with `event=` before ` name=`.
fn logged() -> Vec<(String, BTreeSet<String>)> {
    let mut events = Vec::new();
    for source in files(&root().join("engine/src"), "rs") {
        let text = read(&source);
        for line in text.split("#[cfg(test)]").next().unwrap_or_default().lines().filter(|line| line.contains("\"queue_id={")) {
            let names = line.split([' ', '"']).filter_map(|word| word.split_once('='));
            let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            let fields: Vec<_> = names.filter(|(name, _)| is_name(name)).collect();
            let event = fields.iter().find(|(name, _)| *name == "event").unwrap_or_else(|| panic!("{}: {line}", shown(&source))).1;
            let mut names: BTreeSet<String> = fields.iter().map(|(name, _)| (*name).to_owned()).collect();
            // ` to=<...>` or nothing, put in behind the event.
            let event = match event.strip_suffix("{to}") {
                Some(event) => {
                    names.insert("to".to_owned());
                    event
                }
                None => event,
            };
            events.push((event.to_owned(), names));
        }
    }
    assert!(events.len() > 15, "{events:?}");
    events
}

/// Two events were in neither, and the field `to` of one was no forward-path as the table says.
#[test]
fn the_mail_log_is_described_and_has_its_schema() {
    let table = read(&root().join("docs/mail-log.md"));
    let schema: serde_json::Value = serde_json::from_str(&read(&root().join("docs/mail-log.schema.json"))).unwrap();
    let (properties, known) = (&schema["properties"], &schema["properties"]["event"]["examples"]);
    for (event, fields) in logged() {
        let row = table.lines().find(|line| line.starts_with(&format!("| `{event}` |"))).unwrap_or_else(|| panic!("no row for {event}"));
        assert!(known.as_array().unwrap().contains(&event.as_str().into()), "{event} is not in the schema");
        for field in fields {
            assert!(properties[&field].is_object(), "{event}: {field} is not in the schema");
            let is_in_row = ["queue_id", "event"].contains(&&*field) || row.contains(&format!("`{field}`"));
            assert!(is_in_row || field == "reports", "{event}: {field} is not in its row");
        }
    }
}

/// Folders whose tests the column "test" of docs/rfc.md names as `letter/test`.
const TEST_FOLDERS: [(&str, &str); 3] = [("c", "engine/smtp/tests/client"), ("q", "engine/queue/tests"), ("b", "tests/binary")];

fn is_word_in(text: &str, word: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(at, _)| !text[..at].ends_with(is_name) && !text[at + word.len()..].starts_with(is_name))
}

/// A dialogue `d/name`, or `d/front*` for several; those of the client are `d/client/name`.
fn is_dialogue(name: &str) -> bool {
    let folder = root().join("engine/smtp/tests/dialogues");
    match name.strip_suffix('*') {
        None => folder.join(format!("{name}.txt")).exists(),
        Some(front) => files(&folder.join(Path::new(front).parent().unwrap()), "txt")
            .iter()
            .any(|path| path.starts_with(&folder) && shown(path).starts_with(&shown(&folder.join(front)))),
    }
}

fn is_test(name: &str) -> bool {
    match name.split_once('/') {
        Some(("d", dialogue)) => is_dialogue(dialogue),
        Some(("t", file)) => read(&root().join(format!("engine/smtp/tests/server/{file}.rs"))).contains("#[test]"),
        Some((letter, test)) if letter.len() == 1 => {
            let (_, folder) = TEST_FOLDERS.iter().find(|(short, _)| *short == letter).unwrap_or_else(|| panic!("{name}: no such folder"));
            files(&root().join(folder), "rs").iter().any(|path| read(path).contains(&format!("#[test]\nfn {test}()")))
        }
        _ => rfc_file(name).is_some_and(|path| read(&path).contains("#[test]")),
    }
}

fn rfc_file(name: &str) -> Option<PathBuf> {
    [root().join(name), root().join("engine/smtp").join(name)].into_iter().find(|path| path.is_file())
}

#[test]
fn clauses_name_code_and_tests_that_exist() {
    let (text, mut wrong, mut rows) = (read(&root().join("docs/rfc.md")), Vec::new(), 0);
    for row in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---") && !line.starts_with("| clause")) {
        rows += 1;
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let &[clause, _, code, tests] = cells.as_slice() else {
            wrong.push(format!("not four cells: {row}"));
            continue;
        };
        let mut file = None;
        for name in quoted(code) {
            if name.ends_with(".rs") {
                file = rfc_file(name).map(|path| read(&path));
                if file.is_none() {
                    wrong.push(format!("{clause}: no file {name}"));
                }
            } else if let Some(text) = &file
                && !name.split("::").all(|part| is_word_in(text, part))
            {
                wrong.push(format!("{clause}: no {name} in the file named before it"));
            }
        }
        if file.is_none() {
            wrong.push(format!("{clause}: names no code"));
        }
        let tests: Vec<&str> = tests.split(", ").map(|test| test.trim_matches('`')).collect();
        wrong.extend(tests.iter().filter(|test| !is_test(test)).map(|test| format!("{clause}: no test {test}")));
    }
    assert!(rows > 50, "{rows} rows");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `section.key` of every setting, those commented out in config/default.toml among them.
fn settings() -> BTreeSet<String> {
    let (mut settings, mut section) = (BTreeSet::new(), String::new());
    for line in read(&root().join("config/default.toml")).lines() {
        let line = line.trim_start_matches("# ");
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            settings.insert(format!("{section}.{key}"));
        }
    }
    settings
}

#[test]
fn settings_are_called_by_their_names() {
    let settings = settings();
    let sections: BTreeSet<&str> = settings.iter().filter_map(|setting| setting.split_once('.')).map(|(section, _)| section).collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for document in documents() {
        let text = read(&document);
        for name in quoted(&text).map(|name| name.split(" = ").next().unwrap_or(name)) {
            let Some((section, key)) = name.split_once('.') else { continue };
            let is_key = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if is_key && sections.contains(section) && !["rs", "toml", "md", "sock", "log"].contains(&key) {
                seen += 1;
                if !settings.contains(name) {
                    wrong.push(format!("{}: {name}", shown(&document)));
                }
            }
        }
    }
    assert!(seen > 0 && wrong.is_empty(), "{wrong:#?}");
}
