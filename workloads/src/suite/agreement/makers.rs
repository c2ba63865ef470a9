//! How the two machines of a sequence are made, and the sequence itself.

use fs_sim::design::VolumeOptions;

use super::pair::{MachinePair, SequenceStop};
use super::view::{AgreedView, AgreementStep};
use crate::language::{FileSetup, Setup};
use crate::machines::machine::{Machine, Trouble};

/// The size of a simulated machine's device in bytes: far more than the files of a sequence need.
const DEVICE: u64 = 16 << 20;
/// Makes one machine.
pub(super) type MachineMaker<'m> = dyn Fn(&Setup) -> Result<Box<dyn Machine + 'm>, Trouble> + 'm;

/// How both machines are made. The left one is the reference.
pub(super) struct MachineMakers<'m> {
    pub(super) left: &'m MachineMaker<'m>,
    pub(super) right: &'m MachineMaker<'m>,
}

impl<'m> MachineMakers<'m> {
    pub(super) fn pair(&self, files: &[FileSetup], view: AgreedView) -> Result<MachinePair<'m>, SequenceStop> {
        let setup = Setup {
            device: DEVICE,
            options: VolumeOptions::default(),
            memlock: None,
            files: files.to_vec(),
            linux: true,
            dax: false,
        };
        let cannot = |trouble: Trouble| SequenceStop::NotRun(trouble.to_string());
        let (left, right) = ((self.left)(&setup).map_err(cannot)?, (self.right)(&setup).map_err(cannot)?);
        Ok(MachinePair::new(left, right, view))
    }
}

/// A sequence: its files and steps.
#[derive(Clone, Debug)]
pub(super) struct TriedSequence {
    pub(super) files: Vec<FileSetup>,
    pub(super) processes: usize,
    pub(super) steps: Vec<AgreementStep>,
}
