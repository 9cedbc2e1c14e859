//! Why a library that works sees no device.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Platform;

/// What the system says about the device files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Diagnosis {
    /// A device file is there, and this process may not open it.
    Denied { path: PathBuf, remedy: String },
    /// Something else that explains it.
    Reason(String),
    /// Nothing to be seen from here.
    Unknown,
}

/// Looks at the device files of `platform` in the folder `dev`, and at the variables that hide devices.
pub(super) fn diagnose(
    platform: Platform,
    dev: &Path,
    variable: impl Fn(&str) -> Option<String>,
) -> Diagnosis {
    let (file, hiding): (_, &[&str]) = match platform {
        Platform::Amd => ("kfd", &["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"]),
        Platform::Nvidia => ("nvidiactl", &["CUDA_VISIBLE_DEVICES"]),
    };
    let path = dev.join(file);
    match OpenOptions::new().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Diagnosis::Reason(absent(platform, &path));
        }
        Err(error) => return refused(platform, path, &error),
        Ok(_) => {}
    }
    for name in hiding {
        if let Some(value) = variable(name) {
            return Diagnosis::Reason(format!(
                "{name} is set to `{value}`, which may hide the devices; unset it"
            ));
        }
    }
    Diagnosis::Unknown
}

fn absent(platform: Platform, path: &Path) -> String {
    let path = path.display();
    match platform {
        Platform::Amd => format!(
            "there is no {path}: the amdgpu kernel driver is not loaded, or this is a container without the \
             device; load it, or start the container with --device=/dev/kfd --device=/dev/dri"
        ),
        Platform::Nvidia => format!(
            "there is no {path}: the nvidia kernel driver is not loaded, or this is a container without the \
             device; load it, or start the container with --gpus all"
        ),
    }
}

fn refused(platform: Platform, path: PathBuf, error: &io::Error) -> Diagnosis {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return Diagnosis::Reason(format!("{} does not open: {error}", path.display()));
    }
    let owner = match fs::metadata(&path) {
        Ok(metadata) => {
            let groups = fs::read_to_string("/etc/group").unwrap_or_default();
            let group = group_name(&groups, metadata.gid())
                .map_or_else(|| metadata.gid().to_string(), ToOwned::to_owned);
            format!("it belongs to group {group}, mode {:o}", metadata.mode() & 0o777)
        }
        Err(_) => "its owner cannot be seen".to_owned(),
    };
    let remedy = match platform {
        Platform::Amd => format!(
            "{owner}; join the groups render and video (sudo usermod -aG render,video $USER) and log in \
             again, or start the container with --group-add of that group"
        ),
        Platform::Nvidia => format!("{owner}; ask the administrator for access to the NVIDIA device files"),
    };
    Diagnosis::Denied { path, remedy }
}

/// The name of group `gid` in the text of /etc/group.
fn group_name(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_device_file_names_itself_and_the_remedy() {
        let dev = tempfile::tempdir().unwrap();
        for (platform, file, remedy) in
            [(Platform::Amd, "kfd", "--device=/dev/kfd"), (Platform::Nvidia, "nvidiactl", "--gpus all")]
        {
            let Diagnosis::Reason(reason) = diagnose(platform, dev.path(), |_| None) else {
                panic!("no reason for {platform}");
            };
            assert!(reason.contains(file) && reason.contains(remedy), "{reason}");
        }
    }

    #[test]
    fn a_refused_device_file_says_who_may() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let Diagnosis::Denied { path, remedy } = refused(Platform::Amd, file.path().to_owned(), &denied)
        else {
            panic!("not seen as denied");
        };
        assert_eq!(path, file.path());
        assert!(remedy.contains("mode 600") && remedy.contains("render,video"), "{remedy}");
    }

    #[test]
    fn a_variable_that_hides_devices_is_named() {
        let dev = tempfile::tempdir().unwrap();
        fs::write(dev.path().join("kfd"), "").unwrap();
        let set = |name: &str| (name == "ROCR_VISIBLE_DEVICES").then(|| "-1".to_owned());
        let Diagnosis::Reason(reason) = diagnose(Platform::Amd, dev.path(), set) else {
            panic!("no reason");
        };
        assert!(reason.contains("ROCR_VISIBLE_DEVICES") && reason.contains("-1"), "{reason}");
        assert_eq!(diagnose(Platform::Amd, dev.path(), |_| None), Diagnosis::Unknown);
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nrender:x:109:me\n";
        assert_eq!(group_name(groups, 109), Some("render"));
        assert_eq!(group_name(groups, 44), None);
    }
}
