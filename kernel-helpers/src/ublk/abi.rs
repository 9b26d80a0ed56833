//! The numbers and structures of `linux/ublk_cmd.h`, by their names there (without `UBLK_`).

/// Commands on `/dev/ublk-control`: number, and whether the kernel also writes to what is passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    pub number: u32,
    writes: bool,
}

impl Command {
    const fn new(number: u32, writes: bool) -> Command {
        Command { number, writes }
    }

    pub const GET_DEV_INFO: Command = Command::new(0x02, false);
    pub const ADD_DEV: Command = Command::new(0x04, true);
    pub const DEL_DEV: Command = Command::new(0x05, true);
    pub const START_DEV: Command = Command::new(0x06, true);
    pub const STOP_DEV: Command = Command::new(0x07, true);
    pub const SET_PARAMS: Command = Command::new(0x08, true);
    pub const START_USER_RECOVERY: Command = Command::new(0x10, true);
    pub const END_USER_RECOVERY: Command = Command::new(0x11, true);
    pub const GET_FEATURES: Command = Command::new(0x13, false);

    /// As an ioctl is encoded, which kernels from 6.4 on want; older ones take the number alone.
    pub const fn encoded(self) -> u32 {
        encode(self.number, self.writes, size_of::<ControlCommand>())
    }
}

/// Commands on a queue.
pub const IO_FETCH: u32 = 0x20;
pub const IO_COMMIT_AND_FETCH: u32 = 0x21;

/// The command of a queue, as an ioctl is encoded.
pub const fn encode_io(number: u32) -> u32 {
    encode(number, true, size_of::<IoCommand>())
}

const fn encode(number: u32, writes: bool, size: usize) -> u32 {
    const READ: u32 = 2 << 30;
    const WRITE: u32 = 1 << 30;
    let direction = if writes { READ | WRITE } else { READ };
    direction | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

/// Flags of a device, and of what the driver can do.
pub const F_SUPPORT_ZERO_COPY: u64 = 1 << 0;
pub const F_USER_RECOVERY: u64 = 1 << 3;
pub const F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
pub const F_CMD_IOCTL_ENCODE: u64 = 1 << 6;

/// Of `DeviceInfo::state`.
pub const S_DEV_LIVE: u16 = 1;
pub const S_DEV_QUIESCED: u16 = 2;

/// What completes a fetch that will never bring a request.
pub const IO_RES_ABORT: i32 = -libc::ENODEV;

/// Operations, the low eight bits of `IoDescription::op_flags`, and flags above them.
pub const OP_READ: u32 = 0;
pub const OP_WRITE: u32 = 1;
pub const OP_FLUSH: u32 = 2;
pub const OP_DISCARD: u32 = 3;
pub const OP_WRITE_ZEROES: u32 = 5;
pub const IO_F_FUA: u32 = 1 << 13;
pub const IO_F_NOUNMAP: u32 = 1 << 15;

/// Bytes between the descriptions of two queues, as the kernel lays them out.
pub const QUEUE_STRIDE: usize = 4096 * size_of::<IoDescription>();

/// `ublksrv_ctrl_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlCommand {
    pub dev_id: u32,
    pub queue_id: u16,
    pub len: u16,
    pub addr: u64,
    pub data: u64,
    pub path_len: u16,
    pub pad: u16,
    pub reserved: u32,
}

/// `ublksrv_ctrl_dev_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceInfo {
    pub queues: u16,
    pub depth: u16,
    pub state: u16,
    pub pad0: u16,
    pub max_io_bytes: u32,
    pub dev_id: u32,
    pub pid: i32,
    pub pad1: u32,
    pub flags: u64,
    /// The server's own: the kernel only keeps it.
    pub own_flags: u64,
    pub owner_uid: u32,
    pub owner_gid: u32,
    pub reserved: [u64; 2],
}

/// `ublksrv_io_desc`: a request, in memory that the kernel shares.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoDescription {
    pub op_flags: u32,
    pub sectors: u32,
    pub start_sector: u64,
    pub addr: u64,
}

/// `ublksrv_io_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoCommand {
    pub queue: u16,
    pub tag: u16,
    pub result: i32,
    pub addr: u64,
}

pub const ATTR_READ_ONLY: u32 = 1 << 0;
pub const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
pub const ATTR_FUA: u32 = 1 << 3;
pub const PARAM_TYPE_BASIC: u32 = 1 << 0;
pub const PARAM_TYPE_DISCARD: u32 = 1 << 1;

/// `ublk_params`, as far as it is used: basic and discard.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Parameters {
    pub len: u32,
    pub types: u32,
    pub attributes: u32,
    pub logical_shift: u8,
    pub physical_shift: u8,
    pub optimal_shift: u8,
    pub minimal_shift: u8,
    pub max_sectors: u32,
    pub chunk_sectors: u32,
    pub dev_sectors: u64,
    pub virt_boundary_mask: u64,
    pub discard_alignment: u32,
    pub discard_granularity: u32,
    pub max_discard_sectors: u32,
    pub max_write_zeroes_sectors: u32,
    pub max_discard_segments: u16,
    pub reserved: u16,
}

// The sizes and places that the kernel has them at.
const _: () = assert!(size_of::<ControlCommand>() == 32 && size_of::<DeviceInfo>() == 64);
const _: () = assert!(size_of::<IoDescription>() == 24 && size_of::<IoCommand>() == 16);
const _: () = assert!(std::mem::offset_of!(Parameters, dev_sectors) == 24);
const _: () = assert!(std::mem::offset_of!(Parameters, discard_alignment) == 40);
const _: () = assert!(std::mem::offset_of!(Parameters, max_discard_segments) == 56);
