//! Limits of clients that are smaller than the number of shards, each of which has one at least.

use crate::Config;

impl Config {
    /// A sentence for each limit that `shards` shards cannot keep, because no shard's part is less than one.
    pub fn exceeded_by_shards(&self, shards: u32) -> Vec<String> {
        let smtp = &self.smtp;
        let limits = [
            ("smtp.sessions_per_address", Some(smtp.sessions_per_address)),
            ("smtp.connections_per_minute", smtp.connections_per_minute),
            ("smtp.messages_per_minute", smtp.messages_per_minute),
            ("smtp.recipients_per_minute", smtp.recipients_per_minute),
        ];
        limits
            .into_iter()
            .filter_map(|(key, limit)| Some((key, limit.filter(|limit| *limit < shards)?)))
            .map(|(key, limit)| {
                format!("{key} = {limit} is less than the number of shards: each of the {shards} allows one, so {shards} in all")
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_below_the_number_of_shards_are_named() {
        let text = "[smtp]\nsessions_per_address = 3\nmessages_per_minute = 8\nrecipients_per_minute = 7\n\
                    [[route]]\ndomain = \"a.test\"\nvia = \"smarthost\"\nhosts = [\"192.0.2.1\"]\nconnections_max = 1\n\
                    [[route]]\ndomain = \"*\"\nvia = \"hold\"\n";
        let config = Config::parse(text, "ringpost.toml".as_ref()).unwrap();
        assert_eq!(config.exceeded_by_shards(1), [""; 0]);
        assert_eq!(
            config.exceeded_by_shards(8),
            [
                "smtp.sessions_per_address = 3 is less than the number of shards: each of the 8 allows one, so 8 in all",
                "smtp.recipients_per_minute = 7 is less than the number of shards: each of the 8 allows one, so 8 in all",
                // Limits of destinations hold exactly: each belongs to its home shards.
            ]
        );
    }
}
