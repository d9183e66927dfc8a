//! What joins the layers of a root filesystem: overlayfs-fuse, or the kernel.

use std::path::{Path, PathBuf};

use super::{PlanError, StorageStep};
use crate::probe::HostCaps;
use crate::spec::{Root, Spec, Upper};

/// As much as mount(2) takes of options: a page, of which the last byte ends them.
const MOST_OPTIONS: usize = 4095;

/// What is joined.
pub(super) struct Joined<'a> {
    /// The topmost first.
    pub layers: Vec<&'a Path>,
    /// Where changes go.
    pub upper: &'a Path,
    /// The work directory for that.
    pub work: &'a Path,
}

impl Joined<'_> {
    /// By overlayfs-fuse, at `target`; relative paths begin in `dir`.
    pub(super) fn by_fuse(
        &self,
        spec: &Spec,
        host: &HostCaps,
        dir: PathBuf,
        target: PathBuf,
    ) -> Result<StorageStep, PlanError> {
        let program = host.overlay.clone().ok_or(PlanError::NoProgram("overlayfs-fuse"))?;
        if !host.fuse {
            return Err(PlanError::NoDevice {
                device: "/dev/fuse",
                advice: "load the kernel's fuse module and let every user read and write the \
                         device (or use --overlay kernel, for an image or a directory, with \
                         subordinate ids)",
            });
        }
        let mut options = self.options(fuse_path);
        // Layers were unpacked with the owners they have; directories are as they are.
        if !matches!(spec.root, Root::Image(_)) {
            options.push_str(",unmapped_root");
        }
        if spec.root == Root::Host {
            options.push_str(",public_lower");
        }
        if host.map.is_single() {
            options.push_str(",xattr_permissions=2,kept_owners");
        }
        Ok(StorageStep::Overlay { program, options, dir, target })
    }

    /// By the kernel, at `target`; relative paths begin in `dir`.
    pub(super) fn by_kernel(
        &self,
        spec: &Spec,
        host: &HostCaps,
        dir: PathBuf,
        target: PathBuf,
    ) -> Result<StorageStep, PlanError> {
        // It joins directories, not what is mounted in them: nothing would be hidden.
        if spec.root == Root::Host {
            return Err(PlanError::NotByKernel("the host's root as root filesystem"));
        }
        if host.map.is_single() {
            return Err(PlanError::NotByKernel("a user without subordinate ids"));
        }
        // No process stays that could show what is in there.
        if let Upper::Ram(_) = spec.upper {
            return Err(PlanError::NotByKernel("--upper ram"));
        }
        let mut options = self.options(kernel_path);
        // Attributes that need no privilege on the host; numbers of files and of the device as
        // of one file system, wherever the layers lie.
        options.push_str(",userxattr,xino=on");
        let mut stale = None;
        // Nobody will ask for the changes, so the disk need not have them at the end.
        if spec.remove && spec.upper == Upper::Own {
            options.push_str(",volatile");
            stale = Some(self.work.join("work/incompat"));
        }
        match options.len() {
            ..=MOST_OPTIONS => Ok(StorageStep::KernelOverlay { options, dir, target, stale }),
            bytes => Err(PlanError::LongOptions { bytes }),
        }
    }

    fn options(&self, path: fn(&Path) -> String) -> String {
        let layers: Vec<String> = self.layers.iter().map(|layer| path(layer)).collect();
        let (upper, work) = (path(self.upper), path(self.work));
        format!("lowerdir={},upperdir={upper},workdir={work}", layers.join(":"))
    }
}

/// As overlayfs-fuse takes a path: a colon would end it in a list of layers, a comma would
/// end the option.
fn fuse_path(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\134").replace(':', "\\:").replace(',', "\\054")
}

/// As the kernel does (fs/overlayfs/params.c).
fn kernel_path(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}
