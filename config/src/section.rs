//! One table of the file, read key by key; mistakes are gathered, not thrown.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::choice::nearest;
use crate::setting::{Bounded, Setting, article, text};
use crate::source::{Lines, Source, written};
use crate::{ConfigError, ConfigErrors};

/// The file being read: its text, where its settings stand, and what is wrong so far.
pub(crate) struct Document<'t> {
    text: &'t str,
    lines: Lines,
    source: RefCell<Source>,
    errors: RefCell<Vec<ConfigError>>,
    /// Every key that was asked for: the keys there are. `default.toml` is tested to name them all.
    #[cfg(test)]
    pub(crate) known: RefCell<std::collections::BTreeSet<String>>,
}

impl<'t> Document<'t> {
    pub(crate) fn new(text: &'t str, path: &Path) -> Document<'t> {
        Document {
            text,
            lines: Lines::new(text),
            source: RefCell::new(Source::new(path)),
            errors: RefCell::default(),
            #[cfg(test)]
            known: RefCell::default(),
        }
    }

    /// Reads the text; what is not TOML ends the reading, with each place that is wrong.
    pub(crate) fn tree(&self) -> Result<DeTable<'t>, ConfigErrors> {
        let (tree, errors) = self.what_can_be_read();
        if errors.is_empty() { Ok(tree) } else { Err(ConfigErrors(errors)) }
    }

    /// As much of the text as is TOML, and each place that is not.
    pub(crate) fn what_can_be_read(&self) -> (DeTable<'t>, Vec<ConfigError>) {
        let (tree, errors) = DeTable::parse_recoverable(self.text);
        let path = self.source.borrow().path().to_path_buf();
        let error = |error: toml::de::Error| ConfigError {
            path: path.clone(),
            line: error.span().map(|span| self.lines.of(span.start)),
            key: String::new(),
            value: error.span().filter(|span| !span.is_empty()).and_then(|span| written(self.text, span)),
            message: format!("is not TOML: {}", error.message()),
        };
        (tree.into_inner(), errors.into_iter().map(error).collect())
    }

    pub(crate) fn refuse(&self, key: &str, message: impl Into<String>) {
        let error = self.source.borrow().error(key, message);
        self.errors.borrow_mut().push(error);
    }

    /// A value inside a list is named by itself, not by the whole list.
    fn refuse_value(&self, key: &str, value: &Spanned<DeValue<'_>>, message: String) {
        let line = Some(self.lines.of(value.span().start));
        let path = self.source.borrow().path().to_path_buf();
        let value = written(self.text, value.span());
        self.errors.borrow_mut().push(ConfigError { path, line, key: key.to_owned(), value, message });
    }

    pub(crate) fn line(&self, key: &str) -> u32 {
        self.source.borrow().line(key).unwrap_or(0)
    }

    /// A path of the file: relative ones start at the config file's folder.
    fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        let source = self.source.borrow();
        source.path().parent().unwrap_or(Path::new("")).join(path)
    }

    /// The source when nothing is wrong, else everything that is, by line.
    pub(crate) fn finish(self) -> Result<Source, ConfigErrors> {
        let mut errors = self.errors.into_inner();
        if errors.is_empty() {
            return Ok(self.source.into_inner());
        }
        errors.sort_by_key(|error| error.line);
        Err(ConfigErrors(errors))
    }
}

/// One table. Ask for each key there is, then [`Section::finish`], which refuses the others.
pub(crate) struct Section<'d, 't> {
    pub(crate) document: &'d Document<'t>,
    name: String,
    table: Option<&'d DeTable<'t>>,
    keys: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    pub(crate) fn root(document: &'d Document<'t>, table: &'d DeTable<'t>) -> Section<'d, 't> {
        Section { document, name: String::new(), table: Some(table), keys: Vec::new() }
    }

    /// The full name of a key of this section.
    pub(crate) fn key(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    pub(crate) fn refuse(&self, key: &str, message: impl Into<String>) {
        self.document.refuse(&self.key(key), message);
    }

    /// The value of a key as written, and from now on the place of its errors.
    fn find(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'t>>> {
        if !self.keys.contains(&key) {
            self.keys.push(key);
        }
        let name = self.key(key);
        #[cfg(test)]
        self.document.known.borrow_mut().insert(name.clone());
        let (at, value) = self.table?.get_key_value(key)?;
        // The key's line, not the value's: a table under a header spans from its header, a long list starts where its key stands.
        let line = self.document.lines.of(at.span().start);
        let shown = match value.get_ref() {
            DeValue::Table(_) => None,
            _ => written(self.document.text, value.span()),
        };
        self.document.source.borrow_mut().record(&name, line, shown);
        Some(value)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether the key is there with an empty list (a list of wrong elements was refused already).
    pub(crate) fn has_empty_list(&self, key: &str) -> bool {
        let value = self.table.and_then(|table| table.get(key));
        value.and_then(|value| value.get_ref().as_array()).is_some_and(|list| list.is_empty())
    }

    pub(crate) fn optional<T: Setting>(&mut self, key: &'static str) -> Option<T> {
        let value = self.find(key)?;
        match T::read(value.get_ref()) {
            Ok(setting) => Some(setting),
            Err(message) => {
                self.refuse(key, message);
                None
            }
        }
    }

    pub(crate) fn read<T: Setting>(&mut self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    pub(crate) fn optional_within<T: Bounded>(&mut self, key: &'static str, range: RangeInclusive<T>) -> Option<T> {
        let setting: T = self.optional(key)?;
        if range.contains(&setting) {
            return Some(setting);
        }
        self.refuse(key, format!("is out of bounds: allowed is {} to {}", range.start().shown(), range.end().shown()));
        None
    }

    pub(crate) fn within<T: Bounded>(&mut self, key: &'static str, default: T, range: RangeInclusive<T>) -> T {
        self.optional_within(key, range).unwrap_or(default)
    }

    /// Either the word `word` (None) or a bounded value; absent: `default`.
    pub(crate) fn word_or_within<T: Bounded>(
        &mut self,
        key: &'static str,
        word: &str,
        default: Option<T>,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let Some(value) = self.table.and_then(|table| table.get(key)) else {
            self.keys.push(key);
            #[cfg(test)]
            self.document.known.borrow_mut().insert(self.key(key));
            return default;
        };
        if value.get_ref().as_str() == Some(word) {
            self.find(key);
            return None;
        }
        let errors_before = self.document.errors.borrow().len();
        let setting = self.optional_within(key, range);
        for error in &mut self.document.errors.borrow_mut()[errors_before..] {
            error.message.push_str(&format!(", or \"{word}\""));
        }
        setting
    }

    /// A path; relative ones start at the config file's folder.
    pub(crate) fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        let mut path = self.read(key, default.to_owned());
        if path.is_empty() || path.contains('\0') {
            self.refuse(key, "is not a path");
            path = default.to_owned();
        }
        self.document.resolve(&path)
    }

    /// This path, a relative one from the config file's folder.
    pub(crate) fn resolved(&self, path: &Path) -> PathBuf {
        self.document.resolve(path)
    }

    /// A path that may be missing; relative ones start at the config file's folder.
    pub(crate) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path: String = self.optional(key)?;
        if path.is_empty() || path.contains('\0') {
            self.refuse(key, "is not a path");
            return None;
        }
        Some(self.document.resolve(&path))
    }

    /// A list; each wrong element is an error of its own. None when the key is absent.
    pub(crate) fn list<T>(&mut self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let value = self.find(key)?;
        let Some(elements) = value.get_ref().as_array() else {
            self.refuse(key, format!("is {}, not a list in brackets", article(value.get_ref())));
            return Some(Vec::new());
        };
        let name = self.key(key);
        let read_element = |element: &Spanned<DeValue<'t>>| match text(element.get_ref(), "a string").and_then(&read) {
            Ok(setting) => Some(setting),
            Err(message) => {
                self.document.refuse_value(&name, element, message);
                None
            }
        };
        Some(elements.iter().filter_map(read_element).collect())
    }

    /// A list of strings and inline tables; each wrong element is an error of its own. None when the key is absent.
    pub(crate) fn list_or_tables<T>(
        &mut self,
        key: &'static str,
        read_text: impl Fn(&str) -> Result<T, String>,
        read_table: impl Fn(Section<'d, 't>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.find(key)?;
        let Some(elements) = value.get_ref().as_array() else {
            self.refuse(key, format!("is {}, not a list in brackets", article(value.get_ref())));
            return Some(Vec::new());
        };
        let name = self.key(key);
        let mut list = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            if let Some(table) = element.get_ref().as_table() {
                let name = format!("{name}[{}]", index + 1);
                let line = self.document.lines.of(element.span().start);
                self.document.source.borrow_mut().record(&name, line, None);
                list.extend(read_table(Section { document: self.document, name, table: Some(table), keys: Vec::new() }));
                continue;
            }
            match text(element.get_ref(), "a string or a table in braces").and_then(&read_text) {
                Ok(setting) => list.push(setting),
                Err(message) => self.document.refuse_value(&name, element, message),
            }
        }
        Some(list)
    }

    /// One string or a list of them.
    pub(crate) fn one_or_list<T>(&mut self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        let single = self.table?.get(key).filter(|value| !value.get_ref().is_array());
        let Some(value) = single else { return self.list(key, read) };
        self.find(key);
        match text(value.get_ref(), "a string or a list of strings").and_then(&read) {
            Ok(setting) => Some(vec![setting]),
            Err(message) => {
                self.refuse(key, message);
                Some(Vec::new())
            }
        }
    }

    /// A table `[key]`; absent, all its keys have their defaults.
    pub(crate) fn section(&mut self, key: &'static str) -> Section<'d, 't> {
        let table = self.find(key).and_then(|value| {
            let table = value.get_ref().as_table();
            if table.is_none() {
                self.refuse(key, format!("is {}, not a section: write [{key}]", article(value.get_ref())));
            }
            table
        });
        Section { document: self.document, name: self.key(key), table, keys: Vec::new() }
    }

    /// The tables `[[key]]` in order; None when the key is absent or something else.
    pub(crate) fn sections(&mut self, key: &'static str) -> Option<Vec<Section<'d, 't>>> {
        let value = self.find(key)?;
        let Some(elements) = value.get_ref().as_array() else {
            self.refuse(key, format!("can stand more than once: write [[{key}]]"));
            return None;
        };
        if !elements.is_empty() {
            // The text of all the tables is not a value one wants to read in a message.
            let name = self.key(key);
            let line = self.document.line(&name);
            self.document.source.borrow_mut().record(&name, line, None);
        }
        let mut sections = Vec::with_capacity(elements.len());
        for (index, element) in elements.iter().enumerate() {
            let name = format!("{}[{}]", self.key(key), index + 1);
            let Some(table) = element.get_ref().as_table() else {
                self.document.refuse_value(&name, element, format!("is {}, not a section: write [[{key}]]", article(element.get_ref())));
                continue;
            };
            let line = self.document.lines.of(element.span().start);
            self.document.source.borrow_mut().record(&name, line, None);
            sections.push(Section { document: self.document, name, table: Some(table), keys: Vec::new() });
        }
        Some(sections)
    }

    /// Refuses the keys nobody asked for.
    pub(crate) fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, _) in table {
            let word: &str = key.get_ref();
            if self.keys.contains(&word) {
                continue;
            }
            let line = self.document.lines.of(key.span().start);
            self.document.source.borrow_mut().record(&self.key(word), line, None);
            let hint = match nearest(word, self.keys.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("allowed here: {}", self.keys.join(", ")),
            };
            self.refuse(word, format!("unknown key; {hint}"));
        }
    }
}
