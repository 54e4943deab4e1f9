//! Mix files in a scenario: `size = "@FILE"`, as `--size` of `source` takes it.
//!
//! What is in the file takes the place of its name in the text, so that a scenario is whole, also as results keep it, and later errors
//! still name the lines of its file.

use std::{borrow::Cow, path::Path};

use serde::Deserialize;
use toml::{Spanned, Value};

use crate::sizes::Sizes;

/// Of a scenario, what may name a file of sizes. All else is left to the scenario's own reading.
#[derive(Deserialize)]
struct Loads {
    load: Option<Load>,
    background: Option<Load>,
}

#[derive(Deserialize)]
struct Load {
    size: Option<Spanned<Value>>,
}

/// A scenario's text with what mix files say in the place of their names, which are those of files in `folder` unless they are absolute.
///
/// # Errors
/// The value, and what is wrong with its file. A text that is no TOML comes back as it is.
pub(super) fn read_mixes<'a>(text: &'a str, folder: &Path) -> Result<Cow<'a, str>, String> {
    let Ok(Loads { load, background }) = toml::from_str(text) else { return Ok(text.into()) };
    let mut sizes: Vec<Spanned<Value>> = [load, background].into_iter().flatten().filter_map(|load| load.size).collect();
    // From the end on: what stands before a place that was changed is where it was.
    sizes.sort_by_key(|size| std::cmp::Reverse(size.span().start));
    let mut text = Cow::from(text);
    for size in sizes {
        let Some(file) = size.get_ref().as_str().and_then(|size| size.strip_prefix('@')) else { continue };
        let read = Sizes::read_mix(&folder.join(file)).map_err(|error| format!("size = \"@{file}\": {error}"))?;
        text.to_mut().replace_range(size.span(), &format!("\"{read}\""));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;

    /// What happened: the text that tells what sizes may look like recommends `@FILE`, and a scenario with one was refused with that text.
    #[test]
    fn a_mix_file_lies_beside_its_scenario() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("mix", "1KiB 80\n64KiB 20 # large\n");
        let base = "name = \"x\"\nabout = \"y\"\nseconds = 1\n";
        let path = folder.path().join("mine.toml");
        for size in ["size = \"@mix\"", "size = '@mix'", &format!("size = {:?}", format!("@{}", folder.path().join("mix").display()))] {
            write("mine.toml", &format!("{base}[load]\n{size} # ä\nsessions = 2\n[background]\n{size}\n"));
            let scenario = Scenario::find(path.to_str().unwrap()).unwrap();
            let mix = Sizes::Weighted(vec![(1024, 80.0), (65_536, 20.0)]);
            assert_eq!((&scenario.load.size.0, &scenario.background.unwrap().size.0, scenario.load.sessions), (&mix, &mix, 2), "{size}");
        }
        // Lines are those of the file.
        write("mine.toml", &format!("{base}[load]\nsize = \"@mix\"\nsession = 2\n"));
        let error = Scenario::find(path.to_str().unwrap()).unwrap_err();
        assert!(error.contains("line 6") && error.contains("session"), "{error}");
        write("mine.toml", &format!("{base}[load]\nsize = \"@mix\"\n"));
        for (mix, part) in [("1KiB 80\nmany 3\n", "mix:2: "), ("", "no size has a weight above 0"), ("10 1\n", "octets at least")] {
            write("mix", mix);
            let error = Scenario::find(path.to_str().unwrap()).unwrap_err();
            assert!(error.contains("mine.toml: ") && error.contains(part), "{mix:?}: {error}");
        }
    }
}
