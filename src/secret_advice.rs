//! What `ringpost check` warns of in the files with secrets and the way that a password goes. Nothing of it keeps the engine from running.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use ringpost_config::Config;

use crate::cluster::{admin_token, cluster_key, target_of};

/// A shorter token is guessed by whoever can ask often enough.
const TOKEN_BYTES_ADVISED: usize = 16;
/// A key is tried without asking anybody, by whoever reads what it signs; 32 hexadecimal digits are 128 bits.
const KEY_BYTES_ADVISED: usize = 32;
/// The permissions to read of a file's group and of everybody.
const READ_BY_OTHERS: u32 = 0o044;

/// A sentence for each, with its key. Secrets that cannot be used at all are [`check_secrets`](crate::cluster::check_secrets)'s.
pub fn secret_advice(config: &Config) -> Vec<String> {
    let (mut advice, cluster) = (Vec::new(), &config.cluster);
    let mut files = Vec::new();
    if config.admin.address.is_some() {
        files.push(("admin.token_file", &config.admin.token_file));
        advice.extend(admin_token(config).ok().flatten().and_then(|token| {
            is_short(
                "admin.token_file",
                "token",
                token.len(),
                TOKEN_BYTES_ADVISED,
                "who reaches admin.address can try them one after another",
            )
        }));
    }
    if cluster.enabled {
        files.push(("cluster.key_file", &cluster.key_file));
        files.push(("cluster.valkey_password_file", &cluster.valkey_password_file));
        files.push(("cluster.valkey_sentinel_password_file", &cluster.valkey_sentinel_password_file));
        advice.extend(cluster_key(cluster).ok().flatten().and_then(|key| {
            is_short("cluster.key_file", "key", key.len(), KEY_BYTES_ADVISED, "who reads what Valkey has can try keys until one fits")
        }));
        if let Some(target) = target_of(cluster).ok().filter(|target| target.is_exposed() && target.has_password()) {
            advice.push(format!(
                "cluster.valkey_url: {target} is spoken to in the clear, and the password with it can be read on the way: use valkeys:// (TLS), or an \
                 address of this machine"
            ));
        }
    }
    advice.extend(files.into_iter().filter_map(|(key, path)| is_open(key, path.as_deref()?)));
    advice
}

fn is_short(key: &str, what: &str, bytes: usize, bytes_advised: usize, why: &str) -> Option<String> {
    (bytes < bytes_advised).then(|| {
        format!("{key}: the {what} has {bytes} bytes, and {why}: make one of {bytes_advised} at least, with `openssl rand -hex 32`")
    })
}

fn is_open(key: &str, path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    let by_whom = if mode & 0o004 > 0 { "everybody on this machine" } else { "all users of its group" };
    (mode & READ_BY_OTHERS > 0).then(|| {
        let path = path.display();
        format!("{key}: {path} can be read by {by_whom} (mode {mode:04o}): give it to the engine's user alone, with `chown` and `chmod 600 {path}`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(text: &str, folder: &Path) -> Vec<String> {
        let text = format!("[[listener]]\naddress = \"127.0.0.1:2525\"\n{text}").replace("DIR", &folder.display().to_string());
        secret_advice(&Config::parse(&text, &folder.join("r.toml")).unwrap())
    }

    fn secret(folder: &Path, name: &str, text: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    const LONG: &str = "0123456789abcdef0123456789abcdef";

    /// Files that all users of a machine could read, a token of four letters and a password in the clear were good for the check.
    #[test]
    fn secrets_that_others_can_have_are_named_with_the_mend() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let text = "[admin]\naddress = \"127.0.0.1:0\"\ntoken_file = \"DIR/token\"\n[cluster]\nenabled = true\nvalkey_url = \"valkey://10.0.0.1:6379\"\n\
                    key_file = \"DIR/key\"\nvalkey_password_file = \"DIR/password\"\n";
        secret(folder, "token", LONG, 0o600);
        secret(folder, "key", LONG, 0o400);
        secret(folder, "password", "short", 0o600);
        let found = advice(text, folder);
        assert!(found.len() == 1 && found[0].contains("valkey://10.0.0.1:6379 is spoken to in the clear"), "{found:?}");
        assert_eq!(advice(&text.replace("10.0.0.1", "127.0.0.1"), folder), [""; 0]);
        assert_eq!(advice(&text.replace("valkey://", "valkeys://"), folder), [""; 0]);

        secret(folder, "token", "four", 0o644);
        secret(folder, "key", "0123456789abcdef", 0o640);
        secret(folder, "password", "short", 0o604);
        let found = advice(&text.replace("10.0.0.1", "127.0.0.1"), folder);
        let words = [
            "admin.token_file: the token has 4 bytes".to_owned(),
            "cluster.key_file: the key has 16 bytes".to_owned(),
            format!("admin.token_file: {}/token can be read by everybody on this machine (mode 0644)", folder.display()),
            format!("cluster.key_file: {}/key can be read by all users of its group (mode 0640)", folder.display()),
            format!("cluster.valkey_password_file: {}/password can be read by everybody on this machine (mode 0604)", folder.display()),
        ];
        assert_eq!(found.len(), words.len(), "{found:?}");
        assert!(found.iter().zip(&words).all(|(found, words)| found.starts_with(words)), "{found:?}");
        // What is not used is not looked at.
        let unused = text.replace("enabled = true\n", "").replace("address = \"127.0.0.1:0\"\n", "");
        assert_eq!(advice(&unused, folder), [""; 0]);
    }
}
