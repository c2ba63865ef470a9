//! Device-DAX memory that scenarios map.
//!
//! It owns which part of the device belongs to which machine. Invariants: no two machines of this
//! process have the same part; a part is given back when the processes that mapped it are gone.
//! Kernel counterpart: drivers/dax/device.c.

use std::collections::BTreeMap;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use emulator::sync::{Arc, Mutex};

use crate::machines::machine::Trouble;

/// A device whose content scenarios may overwrite.
#[derive(Debug)]
pub struct DeviceDax {
    path: PathBuf,
    /// The ends of the parts that are taken, by their starts.
    taken: Mutex<BTreeMap<u64, u64>>,
}

/// A part of the device.
#[derive(Debug)]
pub(super) struct DeviceDaxPart {
    device: Arc<DeviceDax>,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl DeviceDax {
    /// The device at `path`, which is looked at when it is needed.
    pub fn new(path: &Path) -> DeviceDax {
        DeviceDax { path: path.to_owned(), taken: Mutex::new(BTreeMap::new()) }
    }

    /// A part of at least `len` bytes.
    ///
    /// # Errors
    /// [`Trouble::CannotRun`]: there is no such device, it can't be mapped by pages, or it is used
    /// up.
    pub(super) fn take(self: &Arc<Self>, len: u64) -> Result<DeviceDaxPart, Trouble> {
        let shown = self.path.display();
        let cannot = |why: String| Trouble::CannotRun(format!("no device-DAX memory: {shown}: {why}"));
        let size = self.size().map_err(cannot)?;
        let page = rustix::param::page_size() as u64;
        let len = len.checked_next_multiple_of(page).unwrap_or(u64::MAX).max(page);
        let mut taken = self.taken.lock();
        let mut offset = 0;
        for (from, to) in taken.iter() {
            if from - offset >= len {
                break;
            }
            offset = *to;
        }
        let end = offset.checked_add(len).filter(|end| *end <= size);
        let end = end.ok_or_else(|| cannot(format!("its {} are too few", crate::input::Size(size))))?;
        taken.insert(offset, end);
        Ok(DeviceDaxPart { device: Arc::clone(self), offset, len })
    }

    /// Its size, if it can be mapped by pages.
    fn size(&self) -> Result<u64, String> {
        let needs = "the kernel needs CONFIG_DEV_DAX, CONFIG_DEV_DAX_PMEM and CONFIG_NVDIMM_DAX, and a namespace of the mode devdax";
        let metadata = std::fs::metadata(&self.path).map_err(|error| format!("{error}; {needs}"))?;
        if !metadata.file_type().is_char_device() {
            return Err("this is no device-DAX device".to_owned());
        }
        let number = metadata.st_rdev();
        let about = format!("/sys/dev/char/{}:{}", libc::major(number), libc::minor(number));
        let told = |name: &str| {
            let text = std::fs::read_to_string(format!("{about}/{name}")).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let size = told("size").ok_or_else(|| "this is no device-DAX device".to_owned())?;
        match told("align") {
            Some(align) if align > rustix::param::page_size() as u64 => {
                let align = crate::input::Size(align);
                Err(format!("it is mapped by units of {align}: make it with `ndctl create-namespace -m devdax -a 4k`"))
            }
            _ => Ok(size),
        }
    }
}

impl DeviceDaxPart {
    /// The device's path.
    pub(super) fn path(&self) -> PathBuf {
        self.device.path.clone()
    }
}

impl Drop for DeviceDaxPart {
    fn drop(&mut self) {
        self.device.taken.lock().remove(&self.offset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_is_told() {
        for (path, why) in [("/dev/no-dax", "No such file"), ("/", "no device-DAX"), ("/dev/null", "no device-DAX")] {
            let error = Arc::new(DeviceDax::new(Path::new(path))).take(4096).unwrap_err().to_string();
            assert!(error.contains(path) && error.contains(why), "{error}");
        }
    }
}
