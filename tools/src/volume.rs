//! A file system on a loop device, by the tools every Linux has: `losetup`, `mkfs.ext4`, `mount`, `umount`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A volume that is in use after this long stays in use.
const UNMOUNT_MAX: Duration = Duration::from_secs(5);

/// Runs a program and returns what it printed. Fails with its words on another exit code than 0.
pub(crate) fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| {
        io::Error::new(error.kind(), format!("{program}: {error} (it is needed; `./dev help` says where it comes from)"))
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    Err(io::Error::other(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
}

/// The octets of a fresh ext4 of `mib` MiB, made in the folder `scratch`.
pub fn fresh_ext4(mib: u64, scratch: &Path) -> io::Result<Vec<u8>> {
    let image = scratch.join("fresh.img");
    let file = std::fs::File::create(&image)?;
    file.set_len(mib << 20)?;
    // A small journal, and none of the lazy work that would write in the background.
    run("mkfs.ext4", &["-q".as_ref(), "-E".as_ref(), "lazy_itable_init=0,lazy_journal_init=0".as_ref(), image.as_ref()])?;
    let content = std::fs::read(&image)?;
    std::fs::remove_file(&image)?;
    Ok(content)
}

/// A mounted loop device; unmounted and detached when dropped, by force if need be.
#[derive(Debug)]
pub struct Volume {
    device: String,
    folder: PathBuf,
}

impl Volume {
    /// Attaches `file` to a loop device and mounts it on `folder`.
    pub fn mount(file: &Path, folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let device = run("losetup", &["-f".as_ref(), "--show".as_ref(), file.as_ref()])?;
        let volume = Self { device, folder: folder.to_path_buf() };
        run("mount", &["-t".as_ref(), "ext4".as_ref(), volume.device.as_ref(), folder.as_ref()])?;
        Ok(volume)
    }

    /// Unmounts in order. The kernel closes the files of an io_uring a moment after its process has ended, so this waits a
    /// little; fails when the volume stays in use.
    pub fn unmount(self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            match run("umount", &[self.folder.as_ref()]) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > UNMOUNT_MAX => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let began = Instant::now();
        // Memory of a killed process may hold on for a moment.
        while is_mounted(&self.folder) && began.elapsed() < UNMOUNT_MAX {
            if run("umount", &[self.folder.as_ref()]).is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if is_mounted(&self.folder) {
            let _as_good_as_it_gets = run("umount", &["-l".as_ref(), self.folder.as_ref()]);
        }
        let _detached_with_its_last_user = run("losetup", &["-d".as_ref(), self.device.as_ref()]);
    }
}

fn is_mounted(folder: &Path) -> bool {
    let wanted = folder.to_string_lossy();
    std::fs::read_to_string("/proc/mounts").is_ok_and(|text| text.lines().any(|line| line.split(' ').nth(1) == Some(&wanted)))
}

/// Fails with a sentence that names what this machine lacks for disks whose power can be cut.
pub fn must_be_possible() -> io::Result<()> {
    if !crate::machine::is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the power-cut rig mounts file systems: run it as root"));
    }
    for (path, what) in [("/dev/fuse", "FUSE in the kernel"), ("/dev/loop-control", "loop devices in the kernel")] {
        if !Path::new(path).exists() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{path} is missing: the power-cut rig needs {what}")));
        }
    }
    run("losetup", &["--version".as_ref()])?;
    run("mkfs.ext4", &["-V".as_ref()])?;
    Ok(())
}
