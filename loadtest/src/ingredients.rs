//! What messages are made of, as the command line and scenarios say it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    content::ContentKind,
    input_file::{self, MESSAGE_BYTES_MAX},
    sizes::Sizes,
    template::{Template, check_field, read_corpus},
};

/// The text of messages that have further header fields or attachments and no template.
const TEXT: &[u8] = b"A message of a load test, number {{seq}}.\r\n";

/// A corpus, a template, or a text with what is added to it; where there is none of them, generated text of these sizes.
#[derive(Debug, Clone, Copy)]
pub struct Ingredients<'a> {
    /// What paths are relative to; an empty one is the working directory.
    pub folder: &'a Path,
    /// A folder of .eml files.
    pub corpus: Option<&'a PathBuf>,
    /// A file with `{{seq}}` and `{{id}}` in it.
    pub template: Option<&'a PathBuf>,
    /// Header fields, `{{seq}}` and `{{id}}` allowed.
    pub header: &'a [String],
    /// Files to attach.
    pub attach: &'a [PathBuf],
    /// Sizes of generated text.
    pub size: &'a Sizes,
}

impl Ingredients<'_> {
    /// Are there no two that exclude each other, and no empty names?
    ///
    /// # Errors
    /// A sentence that names them.
    pub fn check(&self) -> Result<(), String> {
        if let Some((key, _)) = self.places().find(|(_, path)| path.as_os_str().is_empty()) {
            return Err(format!("{key} = \"\": it names no file; name one, or leave it out"));
        }
        let added = !self.header.is_empty() || !self.attach.is_empty();
        match [self.corpus.is_some(), self.template.is_some(), added].into_iter().filter(|&is_there| is_there).count() {
            0 | 1 => Ok(()),
            _ => Err("corpus, template, and header with attach exclude each other".into()),
        }
    }

    /// Files and folders by key.
    fn places(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let (corpus, template) = (self.corpus.into_iter(), self.template.into_iter());
        let attach = self.attach.iter().map(|path| ("attach", path));
        corpus.map(|path| ("corpus", path)).chain(template.map(|path| ("template", path))).chain(attach)
    }

    /// Can what is in header, files and folder be sent? All of it is read, and nothing kept.
    ///
    /// # Errors
    /// Key and value as a scenario has them, the path that was tried, and what is wrong with what is there.
    pub fn check_content(&self) -> Result<(), String> {
        self.header.iter().try_for_each(|field| check_field(field)).map_err(|error| format!("header = {error}"))?;
        for (key, path) in self.places() {
            let place = self.folder.join(path);
            let wrong = |error: &dyn std::fmt::Display| format!("{key} = {path:?}: {}: {error}", place.display());
            if key == "corpus" {
                fs::read_dir(&place).map_err(|error| wrong(&error))?;
                read_corpus(&place).map_err(|error| format!("{key} = {path:?}: {error}"))?;
                continue;
            }
            let text = input_file::read(&place, MESSAGE_BYTES_MAX).map_err(|error| wrong(&error))?;
            if key == "template" {
                Template::parse(&text).map_err(|error| wrong(&error))?;
            }
        }
        Ok(())
    }

    /// Reads the files.
    ///
    /// # Errors
    /// A file that cannot be read, or what [`Ingredients::check`] says.
    pub fn read(&self) -> Result<ContentKind, String> {
        self.check()?;
        if let Some(folder) = self.corpus {
            return read_corpus(&self.folder.join(folder)).map(ContentKind::Corpus);
        }
        if let Some(path) = self.template {
            let path = &self.folder.join(path);
            let text = input_file::read(path, MESSAGE_BYTES_MAX).map_err(|error| format!("the template {}: {error}", path.display()))?;
            return Template::parse(&text).map(ContentKind::Template).map_err(|error| format!("{}: {error}", path.display()));
        }
        if !self.header.is_empty() || !self.attach.is_empty() {
            let attach: Vec<PathBuf> = self.attach.iter().map(|path| self.folder.join(path)).collect();
            return Template::assemble(self.header, TEXT, &attach).map(ContentKind::Template);
        }
        Ok(ContentKind::Text(self.size.clone()))
    }
}
