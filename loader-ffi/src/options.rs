//! The structs of the interface. Each begins with its own size, has no padding, and all zero is its
//! default.

use std::ffi::{c_char, c_void};
use std::time::Duration;

use forebay_client::{
    BadShard, KeepTier, Lane, LoadRequest, PciAddress, Placement, PrefetchRequest, Shard,
    VerifyPolicy,
};

use crate::device::FbDevice;
use crate::memory::{Versioned, list, optional_text, text, texts};
use crate::status::Fault;

/// Somebody waits for the load.
pub const FB_LANE_INTERACTIVE: i32 = 0;
/// Nobody waits for the load.
pub const FB_LANE_PREFETCH: i32 = 1;
/// Bytes are handed over as they come. The load fails at its end if a digest does not hold.
pub const FB_VERIFY_STREAM: i32 = 0;
/// Bytes are handed over when all of their object has been compared with its digest.
pub const FB_VERIFY_STRICT: i32 = 1;
/// Bytes may lie anywhere in host memory.
pub const FB_PLACE_ANYWHERE: i32 = 0;
/// Bytes should lie near the PCI device `gpu`.
pub const FB_PLACE_GPU: i32 = 1;
/// Bytes should lie on the NUMA node `numa_node`.
pub const FB_PLACE_NUMA_NODE: i32 = 2;
/// Host memory.
pub const FB_TIER_RAM: i32 = 0;
/// Local disk.
pub const FB_TIER_NVME: i32 = 1;

/// Where the daemon is, and what this caller is known by beside its uid. Set `size` to
/// `sizeof(fb_connect_options)` and everything else to zero, then what you need. Everything it points
/// to is read during the call only, and no error has a secret in it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FbConnectOptions {
    /// `sizeof(fb_connect_options)`.
    pub size: usize,
    /// `unix:///run/forebay/forebay.sock`, or `tcp://HOST:PORT` for all but loads. Required.
    pub endpoint: *const c_char,
    /// The token of the caller's domain; NULL: none, or that of `token_file`.
    pub token: *const c_char,
    /// A file with the token; white space around it does not count. NULL: none, or `token`.
    pub token_file: *const c_char,
    /// Who certifies the daemon over `tcp://`, a file in PEM; NULL: TCP is in the clear.
    pub tls_ca_file: *const c_char,
    /// This side's certificate over `tcp://`, a file in PEM; NULL: none is shown.
    pub tls_cert_file: *const c_char,
    /// The key of `tls_cert_file`, a file in PEM.
    pub tls_key_file: *const c_char,
}

// SAFETY: `repr(C)`, begins with its size; NULL and zero are values of every field.
unsafe impl Versioned for FbConnectOptions {
    const NAME: &'static str = "fb_connect_options";
}

/// A token is behind a pointer: not even where it lies is shown.
impl std::fmt::Debug for FbConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FbConnectOptions").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Along which dimension some tensors are cut. It never grows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbShardRule {
    /// A glob over names of tensors.
    pub tensors: *const c_char,
    /// The dimension; 0 is the outermost. A tensor without it is not cut.
    pub dim: u32,
    /// Zero.
    pub reserved: u32,
}

/// Where a tensor, a slice of one, or an object goes to. It never grows.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbTarget {
    /// The tensor's name, or the object's key if there is no such tensor.
    pub name: *const c_char,
    /// Where: a `CUdeviceptr`, or a pointer as a number if the device is `host`.
    pub address: u64,
    /// How many bytes are there: at least as many as it needs.
    pub bytes: u64,
}

/// What to load, and how. Set `size` to `sizeof(fb_load_options)` and everything else to zero, then
/// what you need. Everything it points to is read during the call only.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbLoadOptions {
    /// `sizeof(fb_load_options)`.
    pub size: usize,
    /// The checkpoint: `s3://`, `gs://`, `az://`, `http(s)://` or `file:///`. Required.
    pub uri: *const c_char,
    /// The budget of the whole load, from the call to the report, in milliseconds; 0: none.
    pub deadline_ms: u64,
    /// Only tensors whose name matches one of these globs; none: all.
    pub tensors: *const *const c_char,
    /// How many globs `tensors` has.
    pub tensor_count: usize,
    /// Only objects (files) whose key matches one of these globs; none: all.
    pub objects: *const *const c_char,
    /// How many globs `objects` has.
    pub object_count: usize,
    /// The id of the load, 1 to 64 of `[A-Za-z0-9._-]`; NULL: the daemon chooses.
    pub load_id: *const c_char,
    /// `FB_LANE_INTERACTIVE` or `FB_LANE_PREFETCH`.
    pub lane: i32,
    /// `FB_VERIFY_STREAM` or `FB_VERIFY_STRICT`.
    pub verify: i32,
    /// `FB_PLACE_ANYWHERE`, `FB_PLACE_GPU` or `FB_PLACE_NUMA_NODE`. What cannot be had is no error.
    pub placement: i32,
    /// With `FB_PLACE_NUMA_NODE`: which.
    pub numa_node: u32,
    /// With `FB_PLACE_GPU`: its address, as nvidia-smi prints it: `00000000:3B:00.0`.
    pub gpu: *const c_char,
    /// The device that tensors will be copied to, opened with the same client; NULL: none. The
    /// daemon is told, and unless `placement` says otherwise bytes should lie near it.
    pub device: *const FbDevice,
    /// With `ranks`: which rank's slice of every tensor is loaded, from 0 on.
    pub rank: u32,
    /// How many ranks share the checkpoint (tensor parallelism); 0: no slices. Slices come by
    /// `fb_load_to_device`, and only the bytes that they need are fetched.
    pub ranks: u32,
    /// With `ranks`: the dimension that tensors are cut along which no rule matches.
    pub dim: u32,
    /// Zero.
    pub reserved: u32,
    /// With `ranks`: how some tensors are cut otherwise. The first rule that matches counts.
    pub rules: *const FbShardRule,
    /// How many rules `rules` has.
    pub rule_count: usize,
}

// SAFETY: `repr(C)`, begins with its size; NULL and zero are values of every field.
unsafe impl Versioned for FbLoadOptions {
    const NAME: &'static str = "fb_load_options";
}

/// What to prefetch. Set `size` to `sizeof(fb_prefetch_options)` and everything else to zero, then
/// what you need.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbPrefetchOptions {
    /// `sizeof(fb_prefetch_options)`.
    pub size: usize,
    /// The checkpoint. Required.
    pub uri: *const c_char,
    /// The budget in milliseconds; 0: none.
    pub deadline_ms: u64,
    /// The id of the load, as in `fb_load_options`.
    pub load_id: *const c_char,
    /// Where it has to be in the end: `FB_TIER_RAM` or `FB_TIER_NVME`.
    pub tier: i32,
    /// Not zero: keep it on local disk until it is unpinned.
    pub pin: i32,
}

// SAFETY: `repr(C)`, begins with its size; NULL and zero are values of every field.
unsafe impl Versioned for FbPrefetchOptions {
    const NAME: &'static str = "fb_prefetch_options";
}

/// What a load is of. Set `size` to `sizeof(fb_load_info)`. The texts live until the load is
/// closed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbLoadInfo {
    /// `sizeof(fb_load_info)`.
    pub size: usize,
    /// The load's id.
    pub load_id: *const c_char,
    /// The URI as resolved.
    pub uri: *const c_char,
    /// What it resolved to: `b3:` and 64 hexadecimal digits.
    pub revision: *const c_char,
    /// Objects of the checkpoint.
    pub object_count: u64,
    /// Tensors of the checkpoint.
    pub tensor_count: u64,
    /// Size of the checkpoint.
    pub checkpoint_bytes: u64,
    /// How many bytes will be handed over.
    pub granted_bytes: u64,
    /// How many bytes can be held at one time. Hold at most about half of it.
    pub window_bytes: u64,
}

// SAFETY: `repr(C)`, begins with its size; NULL and zero are values of every field.
unsafe impl Versioned for FbLoadInfo {
    const NAME: &'static str = "fb_load_info";
}

/// What a tensor is, and where. Set `size` to `sizeof(fb_tensor_info)`. Everything that it points
/// to can be read until the tensor is released, and must not be written.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbTensorInfo {
    /// `sizeof(fb_tensor_info)`.
    pub size: usize,
    /// Its name; the key of a whole object.
    pub name: *const c_char,
    /// Element type as the file writes it, such as `BF16`; `U8` for a whole object.
    pub dtype: *const c_char,
    /// The key of the object (file) that holds it.
    pub object: *const c_char,
    /// `ndim` dimensions, outermost first.
    pub shape: *const u64,
    /// How many dimensions it has.
    pub ndim: usize,
    /// Its bytes in host memory, row-major, aligned as in the file. NULL only if it is not lent: in
    /// what `fb_load_describe_tensor` and `fb_load_describe_object` say.
    pub data: *const c_void,
    /// How many bytes it has.
    pub bytes: u64,
    /// 1 if the bytes are a private copy, because the window is too small to lend them; else 0.
    pub is_copy: i32,
    /// Zero.
    pub reserved: i32,
}

// SAFETY: `repr(C)`, begins with its size; NULL and zero are values of every field.
unsafe impl Versioned for FbTensorInfo {
    const NAME: &'static str = "fb_tensor_info";
}

/// How a load went: the main figures. Set `size` to `sizeof(fb_report)`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbReport {
    /// `sizeof(fb_report)`.
    pub size: usize,
    /// Bytes handed over.
    pub bytes: u64,
    /// Of them: from host memory.
    pub ram_bytes: u64,
    /// Of them: from local disk.
    pub nvme_bytes: u64,
    /// Of them: from the origin.
    pub origin_tier_bytes: u64,
    /// Bytes that this load caused to be fetched from the origin, failed attempts included.
    pub origin_bytes: u64,
    /// Of `origin_bytes`: what was brought twice.
    pub wasted_bytes: u64,
    /// Requests to the origin.
    pub attempts: u64,
    /// Requests that repeated a failed one.
    pub retries: u64,
    /// The most bytes held at one time.
    pub peak_window_bytes: u64,
    /// From the request to the last release.
    pub wall_seconds: f64,
    /// From the request to the first bytes.
    pub time_to_first_chunk_seconds: f64,
}

// SAFETY: `repr(C)`, begins with its size; zero is a value of every field.
unsafe impl Versioned for FbReport {
    const NAME: &'static str = "fb_report";
}

/// The daemon at a glance. Set `size` to `sizeof(fb_daemon_status)`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FbDaemonStatus {
    /// `sizeof(fb_daemon_status)`.
    pub size: usize,
    /// The most host memory it may hold.
    pub ram_budget_bytes: u64,
    /// Readable and not lent.
    pub ram_cached_bytes: u64,
    /// Lent to clients.
    pub ram_leased_bytes: u64,
    /// The most local disk it may hold; 0 without that tier.
    pub nvme_budget_bytes: u64,
    /// Bytes stored on local disk.
    pub nvme_stored_bytes: u64,
    /// Loads that run.
    pub loads: u64,
    /// How long it has run.
    pub uptime_seconds: f64,
    /// 1 if it is shutting down; else 0.
    pub draining: i32,
    /// Zero.
    pub reserved: i32,
}

// SAFETY: `repr(C)`, begins with its size; zero is a value of every field.
unsafe impl Versioned for FbDaemonStatus {
    const NAME: &'static str = "fb_daemon_status";
}

/// One of two choices, 0 or 1.
fn choice<T>(number: i32, what: &str, choices: [T; 2]) -> Result<T, Fault> {
    let [first, second] = choices;
    match number {
        0 => Ok(first),
        1 => Ok(second),
        _ => Err(Fault::invalid(format!("{what} is {number}: there are 0 and 1"))),
    }
}

impl FbLoadOptions {
    /// The request that the options mean.
    ///
    /// # Safety
    ///
    /// Every text and list is as its field says.
    pub(crate) unsafe fn request(&self) -> Result<LoadRequest, Fault> {
        // SAFETY: the caller keeps the contract of each field, here and in the calls below.
        let uri = unsafe { text(self.uri, "uri") }?;
        // SAFETY: as above.
        let tensors = unsafe { texts(self.tensors, self.tensor_count, "tensors") }?;
        // SAFETY: as above.
        let objects = unsafe { texts(self.objects, self.object_count, "objects") }?;
        let lane = choice(self.lane, "lane", [Lane::Interactive, Lane::Prefetch])?;
        let verify = [VerifyPolicy::Stream, VerifyPolicy::Strict];
        let mut request = LoadRequest::new(uri)
            .tensors(tensors)
            .objects(objects)
            .lane(lane)
            .verify(choice(self.verify, "verify", verify)?);
        if self.deadline_ms > 0 {
            request = request.deadline(Duration::from_millis(self.deadline_ms));
        }
        // SAFETY: as above.
        if let Some(load_id) = unsafe { optional_text(self.load_id, "load_id") }? {
            request = request.load_id(load_id);
        }
        // SAFETY: as above.
        if let Some(placement) = unsafe { self.place() }? {
            request = request.placement(placement);
        }
        // SAFETY: as above.
        if let Some(shard) = unsafe { self.shard() }? {
            request = request.shard(shard);
        }
        Ok(request)
    }

    /// Which slices are wanted.
    ///
    /// # Safety
    ///
    /// `rules` is as its field says.
    unsafe fn shard(&self) -> Result<Option<Shard>, Fault> {
        // SAFETY: as this function's own contract.
        let rules = unsafe { list(self.rules, self.rule_count, "rules") }?;
        if self.ranks == 0 {
            return match (self.rank, self.dim, rules) {
                (0, 0, []) => Ok(None),
                _ => Err(Fault::invalid("rank, dim and rules need ranks")),
            };
        }
        let bad = |error: BadShard| Fault::invalid(error.to_string());
        let mut shard = Shard::new(self.rank, self.ranks).map_err(bad)?;
        for rule in rules {
            // SAFETY: as this function's own contract.
            let tensors = unsafe { text(rule.tensors, "a rule's tensors") }?;
            shard = shard.along(tensors, rule.dim).map_err(bad)?;
        }
        shard.along("**", self.dim).map(Some).map_err(bad)
    }

    /// Where bytes should lie.
    ///
    /// # Safety
    ///
    /// `gpu` is as its field says.
    unsafe fn place(&self) -> Result<Option<Placement>, Fault> {
        match self.placement {
            FB_PLACE_ANYWHERE => Ok(None),
            FB_PLACE_GPU => {
                // SAFETY: as this function's own contract.
                let gpu = unsafe { text(self.gpu, "gpu") }?;
                let address = gpu.parse::<PciAddress>();
                let address = address.map_err(|error| Fault::invalid(format!("gpu: {error}")))?;
                Ok(Some(Placement::Gpu(address)))
            }
            FB_PLACE_NUMA_NODE => Ok(Some(Placement::Node(self.numa_node))),
            other => Err(Fault::invalid(format!("placement is {other}: there are 0, 1 and 2"))),
        }
    }
}

impl FbPrefetchOptions {
    /// The request that the options mean.
    ///
    /// # Safety
    ///
    /// Every text is as its field says.
    pub(crate) unsafe fn request(&self) -> Result<PrefetchRequest, Fault> {
        // SAFETY: as this function's own contract.
        let uri = unsafe { text(self.uri, "uri") }?;
        let tier = choice(self.tier, "tier", [KeepTier::Ram, KeepTier::Nvme])?;
        let mut request = PrefetchRequest::new(uri);
        request = match self.pin {
            0 => request.tier(tier),
            // What is pinned is on disk, whatever the tier says.
            _ => request.pin(),
        };
        // SAFETY: as this function's own contract.
        if let Some(load_id) = unsafe { optional_text(self.load_id, "load_id") }? {
            request = request.load_id(load_id);
        }
        Ok(request)
    }
}
