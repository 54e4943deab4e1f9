//! Who may read and write a file that takes another's place.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::Path,
};

use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::Errno,
    process::geteuid,
};

/// In a folder with this bit of its mode files are replaced by their owners alone.
const STICKY: u32 = 0o1000;

/// Gives a file the mode of the one in whose place it will be, and its owner and group where this process may. Where its group cannot be had,
/// the other group may do no more than everybody. Nothing changes where there is none to be replaced.
///
/// # Errors
/// What the system says to a change of mode.
pub fn take_over(replaced: &Path, file: &File) -> io::Result<()> {
    let Ok(known) = fs::metadata(replaced) else { return Ok(()) };
    // The owner first: a change of it may take bits of the mode away.
    let has_group = fchown(file, Some(known.uid()), Some(known.gid())).is_ok() || fchown(file, None, Some(known.gid())).is_ok();
    let mode = known.mode() & 0o777;
    let mode = if has_group { mode } else { mode & (0o707 | (mode & 0o007) << 3) };
    // Some file systems have one mode for all files.
    if file.metadata()?.mode() & 0o777 == mode { Ok(()) } else { file.set_permissions(Permissions::from_mode(mode)) }
}

/// Why this process may not put another file in the place of this one, where that can be told without trying: its folder may not be written, or
/// is sticky and neither the file nor the folder is this user's.
pub fn cannot_replace(path: &Path) -> Option<String> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let user = geteuid();
    if let Err(reason @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) =
        accessat(CWD, folder, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
    {
        let user = user.as_raw();
        return Some(format!("user {user} may not write into its folder {}: {reason}; name another file (--file)", folder.display()));
    }
    let (file, around) = (fs::metadata(path).ok()?, fs::metadata(folder).ok()?);
    let is_kept = around.mode() & STICKY != 0 && !user.is_root() && ![file.uid(), around.uid()].contains(&user.as_raw());
    is_kept.then(|| {
        format!(
            "user {} may not replace it: it is user {}'s, and its folder {} is sticky (chmod +t), where only owners replace their files; name \
             another file (--file)",
            user.as_raw(),
            file.uid(),
            folder.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_result::write_whole;

    /// What happened: a history that only its owner could read was everybody's after the next run that was added.
    #[test]
    fn a_file_that_is_replaced_keeps_its_mode_and_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for mode in [0o600, 0o644, 0o640, 0o400] {
            write_whole(&path, b"old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            // Only root may give files away.
            let is_given = std::os::unix::fs::chown(&path, Some(12_345), Some(12_346)).is_ok();
            write_whole(&path, b"new").unwrap();
            let known = fs::metadata(&path).unwrap();
            assert_eq!((known.mode() & 0o777, fs::read(&path).unwrap()), (mode, b"new".to_vec()));
            assert!(!is_given || (known.uid(), known.gid()) == (12_345, 12_346), "{mode:o}");
        }
    }
}
