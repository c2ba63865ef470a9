//! `daxlab serve`: files or an image as guests' persistent memory.
//!
//! It owns the command's arguments. Everything is checked before anything is made; what a guest
//! needs is on stdout, before it is waited for.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Args, ValueHint};
use emulator::device::ImageSpace;
use emulator::sync::Arc;
use workloads::input::designs::{DesignCatalogue, DesignEntry};
use workloads::input::{Size, nearest, or_list, shown};
use workloads::messages::peers::AllowedPeers;
use workloads::serving::{Config, Files, NewContents, ServeError, Server, StopRequest, What};

use crate::exit;
use crate::numbers;

/// Serve a file of a simulated volume, or a whole image, to guests as persistent memory (vhost-user
/// virtio-pmem)
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("memory").required(true).args(["image", "file"])))]
pub(crate) struct ServeArgs {
    /// Where a guest connects; several times for several guests
    #[arg(long, value_name = "PATH", required = true, value_hint = ValueHint::FilePath)]
    socket: Vec<PathBuf>,
    /// A whole device, kept in this file; made if there is none
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    image: Option<PathBuf>,
    /// The device's size, with a unit: `1GiB`; needed for a new image
    #[arg(long, value_name = "SIZE", conflicts_with = "file")]
    size: Option<Size>,
    /// Take all of the image's room on its filesystem at the start, or end with an error if it has
    /// too little. Without this, a store of a guest for which there is no room kills QEMU
    #[arg(long, conflicts_with = "file")]
    preallocate: bool,
    /// A file of a simulated volume: one for all sockets, or one for each in order
    #[arg(long, value_name = "NAME")]
    file: Vec<String>,
    /// Make each file with this size, all zero
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["image", "import"])]
    create: Option<Size>,
    /// Make each file with the contents of this file of the host
    #[arg(long, value_name = "HOSTFILE", conflicts_with = "image", value_hint = ValueHint::FilePath)]
    import: Option<PathBuf>,
    /// Break each file up into so many extents; 1 to 128 can be served
    #[arg(long, value_name = "K", conflicts_with = "image", value_parser = numbers::any)]
    extents: Option<u64>,
    /// Join each file's extents before it is served
    #[arg(long, conflicts_with = "image")]
    defragment: bool,
    /// The size of the simulated volume; twice the files' if not given, four times with
    /// --defragment
    #[arg(long, value_name = "SIZE", conflicts_with = "image")]
    volume: Option<Size>,
    /// What holds a file for a guest, and who wins against a truncate: a preset, or a TOML file
    /// with one design
    #[arg(long, value_name = "D|FILE.toml", default_value = "man-page", conflicts_with = "image")]
    design: String,
    /// For a guest that has the memory as an ACPI NVDIMM of QEMU's own: write the info block that
    /// its Linux wants
    #[arg(long)]
    nvdimm: bool,
    /// Let guests read what they get, and not write it: QEMU's have it as a read-only NVDIMM, other
    /// frontends by the sockets
    #[arg(long, conflicts_with = "nvdimm")]
    read_only: bool,
    /// Write each vhost-user message of each guest to this file, one a line: time, direction, name,
    /// flags, sizes, descriptors, and what became of it. The file is new, empty or an older trace,
    /// which is replaced
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    trace: Option<PathBuf>,
    /// Say on stderr what a guest's frontend does against the vhost-user specification, also where
    /// it does no harm
    #[arg(long)]
    strict: bool,
    /// Keep a durable copy, brought up to date by each flush, so that `daxlab ctl power-cut` can
    /// cut the power
    #[arg(long)]
    power_cut_model: bool,
    /// Seed of every random choice
    #[arg(long, value_name = "S", default_value_t = 1, value_parser = numbers::any)]
    seed: u64,
    /// Where `daxlab ctl` asks; the first socket's path with `.ctl` behind it if not given
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,
    /// Let this user connect, at every socket, beside your own and root; several times for several.
    /// Who may connect may read and write the whole volume
    #[arg(long, value_name = "UID", value_parser = numbers::within(0..=u32::MAX - 1, "`id -u NAME` prints a user's"))]
    allow_uid: Vec<u32>,
    /// The QEMU to print command lines for, if not the ones that are found
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    qemu: Option<PathBuf>,
}

/// Runs the command, until it is asked to end.
///
/// # Errors
/// Wrong input (exit code 2), or the machine can't run it (exit code 3).
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let config = config(args)?;
    let stop = Arc::new(StopRequest::default());
    let asked = Arc::clone(&stop);
    exit::on_interrupt(move || asked.ask())?;
    let server = match Server::start(&config, Arc::new(exit::note)) {
        Ok(server) => server,
        Err(ServeError::Refused(why)) => {
            exit::note(&format!("error: {why}"));
            return Ok(ExitCode::from(exit::FOUND));
        }
        Err(ServeError::Cannot(why)) => return Err(exit::CannotRun(why).into()),
        Err(wrong) => return Err(wrong.into()),
    };
    let ready: String = config.sockets.iter().map(|socket| format!("ready: {}\n", socket.display())).collect();
    exit::print(&format!("{}\n{ready}", server.introduction()))?;
    stop.wait();
    let left = server.end();
    if left > 0 {
        let guests = if left == 1 { "guest is" } else { "guests are" };
        exit::note(&format!("ended; {left} {guests} still attached: flushes fail there from now on"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The arguments, checked as far as they can be without touching anything.
fn config(args: ServeArgs) -> anyhow::Result<Config> {
    let mut catalogue = DesignCatalogue::default();
    let designs = designs(&mut catalogue, &args.design)?;
    let [design] = &designs[..] else {
        anyhow::bail!("--design {}: these are {} designs; a server runs under one", args.design, designs.len());
    };
    let control = args.control.clone().unwrap_or_else(|| {
        let mut path = args.socket[0].clone().into_os_string();
        path.push(".ctl");
        path.into()
    });
    Ok(Config {
        what: what(&args)?,
        sockets: args.socket,
        design: design.design.name.clone(),
        axes: design.design.axes,
        nvdimm: args.nvdimm,
        read_only: args.read_only,
        trace: args.trace,
        strict: args.strict,
        power_cut_model: args.power_cut_model,
        seed: args.seed,
        control,
        allowed: AllowedPeers::with(&args.allow_uid),
        qemu: args.qemu,
        program: PathBuf::from("/proc/self/exe"),
    })
}

/// What `--design` names. A server runs under one, so a list of several is no advice.
fn designs(catalogue: &mut DesignCatalogue, word: &str) -> anyhow::Result<Vec<DesignEntry>> {
    let is_one = !DesignCatalogue::is_path(word) && !word.contains(',') && word != "all";
    if is_one && catalogue.find(word.trim()).is_none() {
        let near = nearest(word, catalogue.names());
        let near = near.map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"));
        let (word, names) = (shown(word), or_list(catalogue.names()));
        anyhow::bail!("--design {word}: unknown design{near}; it can be {names}, or a TOML file with one design");
    }
    Ok(catalogue.resolve(word)?)
}

fn what(args: &ServeArgs) -> anyhow::Result<What> {
    if let Some(path) = &args.image {
        let space = if args.preallocate { ImageSpace::Preallocated } else { ImageSpace::Sparse };
        return Ok(What::Image { path: path.clone(), bytes: args.size.map(|size| size.0), space });
    }
    let contents = match (&args.create, &args.import) {
        (Some(size), _) => NewContents::Zeros(size.0),
        (None, Some(path)) => NewContents::Import(path.clone()),
        (None, None) => anyhow::bail!(
            "--file {}: a new volume has no files; say what is in it with --create SIZE or --import HOSTFILE",
            args.file.join(", ")
        ),
    };
    Ok(What::Files(Files {
        names: args.file.clone(),
        contents,
        extents: args.extents,
        defragment: args.defragment,
        volume: args.volume.map(|size| size.0),
    }))
}
