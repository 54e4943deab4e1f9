//! Settings that are one word of a few.

/// The allowed word nearest to a mistyped one; None when nothing is near enough to be meant.
pub(crate) fn nearest<'w>(word: &str, allowed: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let word = word.to_ascii_lowercase();
    let limit = (word.chars().count() / 3).max(1);
    let scored = allowed.into_iter().map(|candidate| (distance(&word, candidate), candidate));
    scored.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// Changes (insert, delete, replace, swap of neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = last[j] + usize::from(a[i] != b[j]);
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// `is not allowed: "a" or "b"`, with the word that was probably meant.
pub(crate) fn refuse(word: &str, allowed: &[&str]) -> String {
    let list: Vec<String> = allowed.iter().map(|word| format!("\"{word}\"")).collect();
    let meant = nearest(word, allowed.iter().copied()).map(|word| format!("; did you mean \"{word}\"?")).unwrap_or_default();
    format!("is not allowed: write {}{meant}", list.join(" or "))
}

/// An enum whose variants are words of the file.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $name {
            /// The word as written in the file.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl crate::setting::Setting for $name {
            fn read(value: &toml::de::DeValue<'_>) -> Result<$name, String> {
                match crate::setting::text(value, "a word in quotes")? {
                    $($word => Ok($name::$variant),)+
                    word => Err(crate::choice::refuse(word, &[$($word),+])),
                }
            }
        }
    };
}
pub(crate) use choice;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_probably_meant_is_found() {
        let allowed = ["segment_bytes", "prepared_segments", "path"];
        assert_eq!(nearest("segmnet_bytes", allowed), Some("segment_bytes"));
        assert_eq!(nearest("Path", allowed), Some("path"));
        assert_eq!(nearest("colour", allowed), None);
    }

    #[test]
    fn distance_counts_a_swap_once() {
        assert_eq!(distance("relya", "relay"), 1);
        assert_eq!(distance("", "ab"), 2);
        assert_eq!(distance("ab", ""), 2);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
