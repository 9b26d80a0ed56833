//! The batch: one header block that describes up to 124 records, then their payloads.
//!
//! A payload is written from the aligned buffer into which it was received: that is why each is padded to a whole
//! block, and why the headers of all records of a batch share one block in front.

use super::{BLOCK, crc_without, le, padded};
use crate::buf::{BufMut, Payload};
use crate::core::{Kind, Lsn, Record, TermId, VolumeId};

/// First bytes of every batch.
pub const MAGIC: [u8; 8] = *b"USTDYBAT";
/// The version written and read by this code.
pub const VERSION: u16 = 1;
/// Most records in one batch.
pub const MAX_RECORDS: usize = 124;
/// Longest payload of one record, in bytes.
pub const MAX_RECORD_BYTES: u64 = 1 << 20;
/// Most payload bytes of one batch, padding included.
pub const MAX_PAYLOAD_BYTES: u64 = 4 << 20;
/// Longest batch, in bytes.
pub const MAX_BATCH_BYTES: u64 = BLOCK as u64 + MAX_PAYLOAD_BYTES;

/// Offsets in the header block, as in `docs/format.md`.
pub(super) mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 8;
    pub const COUNT: usize = 10;
    pub const CRC: usize = 12;
    pub const PREV_CRC: usize = 16;
    pub const STREAM: usize = 24;
    pub const ADDRESS: usize = 40;
    pub const TERM_NUMBER: usize = 48;
    pub const TERM_ID: usize = 56;
    pub const FIRST: usize = 72;
    pub const DURABLE: usize = 80;
    pub const PAYLOAD_BYTES: usize = 88;
    pub const RESERVED: usize = 96;
    pub const RECORDS: usize = 128;
}

/// Offsets in a record's entry.
mod rec {
    pub const KIND: usize = 0;
    pub const FLAGS: usize = 1;
    pub const VOLUME: usize = 2;
    pub const CRC: usize = 4;
    pub const OFFSET: usize = 8;
    pub const LENGTH: usize = 16;
    pub const RESERVED: usize = 24;
    pub const BYTES: usize = 32;
}

const _: () = assert!(at::RECORDS + MAX_RECORDS * rec::BYTES == BLOCK);
const _: () = assert!(at::VERSION == at::MAGIC + MAGIC.len() && at::COUNT == at::VERSION + 2);
const _: () = assert!(at::CRC == at::COUNT + 2 && at::PREV_CRC == at::CRC + 4 && at::STREAM == at::PREV_CRC + 8);
const _: () = assert!(at::ADDRESS == at::STREAM + 16 && at::TERM_NUMBER == at::ADDRESS + 8);
const _: () = assert!(at::TERM_ID == at::TERM_NUMBER + 8 && at::FIRST == at::TERM_ID + 16);
const _: () = assert!(at::DURABLE == at::FIRST + 8 && at::PAYLOAD_BYTES == at::DURABLE + 8);
const _: () = assert!(at::RESERVED == at::PAYLOAD_BYTES + 8 && at::RECORDS == at::RESERVED + 32);
const _: () = assert!(rec::FLAGS == rec::KIND + 1 && rec::VOLUME == rec::FLAGS + 1 && rec::CRC == rec::VOLUME + 2);
const _: () = assert!(rec::OFFSET == rec::CRC + 4 && rec::LENGTH == rec::OFFSET + 8);
const _: () = assert!(rec::RESERVED == rec::LENGTH + 8 && rec::BYTES == rec::RESERVED + 8);

/// The term of a batch's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermRef {
    pub number: u64,
    pub id: TermId,
}

/// What the writer of a batch decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFields {
    /// Random id of the log, history, list or salvage that the batch belongs to.
    pub stream: u128,
    /// Bytes since the stream's creation at which the batch stands; a multiple of 4096.
    pub address: u64,
    /// Checksum of the header block before it; [`seed`] for a stream's first.
    pub prev_crc: u32,
    pub term: TermRef,
    /// Lsn of record 0; the others follow without a gap.
    pub first: Lsn,
    /// What was durable when the batch was written (L2): below `first`.
    pub durable: Lsn,
}

/// The first 128 bytes of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub fields: BatchFields,
    /// Records in the batch, 1 to [`MAX_RECORDS`].
    pub count: u16,
    /// Bytes after the header block, padding included.
    pub payload_bytes: u64,
    /// Checksum of the header block: the next batch's `prev_crc`.
    pub crc: u32,
}

impl BatchHeader {
    /// Bytes of the whole batch.
    pub fn bytes(&self) -> u64 {
        BLOCK as u64 + self.payload_bytes
    }

    /// Lsn of the record at `index`.
    pub fn lsn(&self, index: usize) -> Lsn {
        Lsn(self.fields.first.0 + index as u64)
    }
}

/// A record as its batch's header tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMeta {
    pub kind: Kind,
    pub volume: VolumeId,
    /// Checksum of the payload, 0 where there is none.
    pub crc: u32,
    pub offset: u64,
    pub length: u64,
    /// Where the payload begins, in bytes from the start of the batch. Means nothing without a payload.
    pub payload_at: u64,
}

impl RecordMeta {
    /// Bytes of payload, without padding.
    pub fn payload_bytes(&self) -> u64 {
        payload_bytes(self.kind, self.length)
    }
}

fn payload_bytes(kind: Kind, length: u64) -> u64 {
    match kind {
        Kind::Write => length,
        Kind::Zeroes | Kind::Discard => 0,
    }
}

/// Why a block is not the header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("a batch header has 4096 bytes, and only {bytes} were given")]
    Short { bytes: usize },
    #[error("no batch begins here")]
    NoMagic,
    #[error("the checksum of the batch header is {stored:08x}, and its contents have {computed:08x}")]
    Checksum { stored: u32, computed: u32 },
    #[error("the batch has format version {version}, and this program knows version {VERSION}: use a newer program")]
    Version { version: u16 },
    #[error("the batch says that it holds {count} records; 1 to {MAX_RECORDS} are possible")]
    Count { count: u16 },
    #[error("the batch's address {address} is not a multiple of 4096, or too large")]
    Address { address: u64 },
    #[error("lsn {first} leaves no room for {count} records after it")]
    Lsn { first: u64, count: u16 },
    #[error("record {index} of the batch has the unknown kind {kind}: use a newer program")]
    Kind { index: usize, kind: u8 },
    #[error("record {index} of the batch has unknown flags {flags:#x}: use a newer program")]
    Flags { index: usize, flags: u8 },
    #[error("record {index} of the batch covers no possible range: {length} bytes at {offset}")]
    Range { index: usize, offset: u64, length: u64 },
    #[error("record {index} of the batch has a payload of {length} bytes; at most {MAX_RECORD_BYTES} are possible")]
    TooLong { index: usize, length: u64 },
    #[error("record {index} of the batch has a checksum but no payload")]
    StrayChecksum { index: usize },
    #[error("the batch says that {stated} payload bytes follow, and its records make {summed}")]
    PayloadBytes { stated: u64, summed: u64 },
}

/// The `prev_crc` of the first batch of a stream.
pub fn seed(stream: u128) -> u32 {
    crc32fast::hash(&stream.to_le_bytes())
}

/// Bytes of a batch of these records.
pub fn batch_bytes(records: &[Record]) -> u64 {
    BLOCK as u64 + records.iter().map(record_bytes).sum::<u64>()
}

/// Bytes that a record adds to its batch: its payload, padded.
pub fn record_bytes(record: &Record) -> u64 {
    padded(record.payload.len() as u64)
}

/// The most that a record can take of a ring, whoever cuts the batches: a header block of its own, and its payload.
pub fn most_bytes(record: &Record) -> u64 {
    BLOCK as u64 + record_bytes(record)
}

/// How many of `records`, from the first on, one batch takes; at least 1 if there is one.
pub fn fitting(records: &[Record]) -> usize {
    let mut bytes = 0;
    let fits = |record: &&Record| {
        bytes += record_bytes(record);
        bytes <= MAX_PAYLOAD_BYTES
    };
    records.iter().take(MAX_RECORDS).take_while(fits).count()
}

/// What a header will tell of these records.
pub fn metas(records: &[Record]) -> Vec<RecordMeta> {
    let mut payload_at = BLOCK as u64;
    let meta = |record: &Record| {
        let at = payload_at;
        payload_at += record_bytes(record);
        let Record { kind, volume, crc, offset, length, .. } = *record;
        RecordMeta { kind, volume, crc, offset, length, payload_at: at }
    };
    records.iter().map(meta).collect()
}

/// The header block of a batch of `records`, and its checksum, which the next batch takes as its `prev_crc`.
///
/// # Panics
/// If the records are not what a batch can hold (count, consecutive lsns, lengths, an address that is no multiple of
/// 4096): the caller has built it wrongly, and the log must not be written so.
pub fn encode(fields: &BatchFields, records: &[Record]) -> (Payload, u32) {
    assert!((1..=MAX_RECORDS).contains(&records.len()), "{} records in a batch", records.len());
    assert!(fields.address.is_multiple_of(BLOCK as u64), "address {} of a batch", fields.address);
    let payload_bytes = batch_bytes(records) - BLOCK as u64;
    assert!(payload_bytes <= MAX_PAYLOAD_BYTES, "{payload_bytes} payload bytes in a batch");

    let mut block = BufMut::zeroed(BLOCK);
    le::put(&mut block, at::MAGIC, MAGIC);
    le::put(&mut block, at::VERSION, VERSION.to_le_bytes());
    le::put(&mut block, at::COUNT, (records.len() as u16).to_le_bytes());
    le::put(&mut block, at::PREV_CRC, fields.prev_crc.to_le_bytes());
    le::put(&mut block, at::STREAM, fields.stream.to_le_bytes());
    le::put(&mut block, at::ADDRESS, fields.address.to_le_bytes());
    le::put(&mut block, at::TERM_NUMBER, fields.term.number.to_le_bytes());
    le::put(&mut block, at::TERM_ID, fields.term.id.0.to_le_bytes());
    le::put(&mut block, at::FIRST, fields.first.0.to_le_bytes());
    le::put(&mut block, at::DURABLE, fields.durable.0.to_le_bytes());
    le::put(&mut block, at::PAYLOAD_BYTES, payload_bytes.to_le_bytes());
    for (index, record) in records.iter().enumerate() {
        assert_eq!(record.lsn.0, fields.first.0 + index as u64, "lsns of a batch follow each other");
        let entry = at::RECORDS + index * rec::BYTES;
        encode_record(&mut block[entry..entry + rec::BYTES], record);
    }
    let crc = crc_without(&block, at::CRC);
    le::put(&mut block, at::CRC, crc.to_le_bytes());
    (block.freeze(), crc)
}

fn encode_record(entry: &mut [u8], record: &Record) {
    let payload = payload_bytes(record.kind, record.length);
    assert_eq!(record.payload.len() as u64, payload, "payload of a {:?} of {} bytes", record.kind, record.length);
    assert!(record.length > 0 && payload <= MAX_RECORD_BYTES, "a record of {} bytes", record.length);
    entry[rec::KIND] = record.kind as u8;
    le::put(entry, rec::VOLUME, record.volume.0.to_le_bytes());
    let crc = if payload > 0 { record.crc } else { 0 };
    le::put(entry, rec::CRC, crc.to_le_bytes());
    le::put(entry, rec::OFFSET, record.offset.to_le_bytes());
    le::put(entry, rec::LENGTH, record.length.to_le_bytes());
}

/// What is written for a batch, in order: the header block, and each payload with zeros up to a whole block. No
/// payload is copied.
pub fn buffers(header_block: Payload, records: &[Record]) -> Vec<Payload> {
    let mut bufs = vec![header_block];
    for record in records.iter().filter(|r| !r.payload.is_empty()) {
        bufs.push(record.payload.clone());
        let rest = record.payload.len() % BLOCK;
        if rest != 0 {
            bufs.push(BufMut::zeroed(BLOCK - rest).freeze());
        }
    }
    bufs
}

/// Reads a header block. Nothing in the bytes is trusted.
pub fn decode_header(block: &[u8]) -> Result<(BatchHeader, Vec<RecordMeta>), BatchError> {
    let block = block.get(..BLOCK).ok_or(BatchError::Short { bytes: block.len() })?;
    if block[at::MAGIC..at::MAGIC + MAGIC.len()] != MAGIC {
        return Err(BatchError::NoMagic);
    }
    let (stored, computed) = (le::u32(block, at::CRC), crc_without(block, at::CRC));
    if stored != computed {
        return Err(BatchError::Checksum { stored, computed });
    }
    let version = le::u16(block, at::VERSION);
    if version != VERSION {
        return Err(BatchError::Version { version });
    }
    let header = header_of(block)?;
    let metas = metas_of(block, &header)?;
    Ok((header, metas))
}

fn header_of(block: &[u8]) -> Result<BatchHeader, BatchError> {
    let term = TermRef { number: le::u64(block, at::TERM_NUMBER), id: TermId(le::u128(block, at::TERM_ID)) };
    let fields = BatchFields {
        stream: le::u128(block, at::STREAM),
        address: le::u64(block, at::ADDRESS),
        prev_crc: le::u32(block, at::PREV_CRC),
        term,
        first: Lsn(le::u64(block, at::FIRST)),
        durable: Lsn(le::u64(block, at::DURABLE)),
    };
    let count = le::u16(block, at::COUNT);
    if !(1..=MAX_RECORDS).contains(&usize::from(count)) {
        return Err(BatchError::Count { count });
    }
    let (address, first) = (fields.address, fields.first.0);
    if !address.is_multiple_of(BLOCK as u64) || address > u64::MAX - MAX_BATCH_BYTES {
        return Err(BatchError::Address { address });
    }
    // One more than the last lsn is the next one to expect, and must exist too.
    if first.checked_add(u64::from(count)).is_none() {
        return Err(BatchError::Lsn { first, count });
    }
    Ok(BatchHeader { fields, count, payload_bytes: le::u64(block, at::PAYLOAD_BYTES), crc: le::u32(block, at::CRC) })
}

fn metas_of(block: &[u8], header: &BatchHeader) -> Result<Vec<RecordMeta>, BatchError> {
    let mut metas = Vec::with_capacity(usize::from(header.count));
    // At most 124 payloads of at most 1 MiB are summed: no overflow.
    let mut payload_at = BLOCK as u64;
    let entries = block[at::RECORDS..].chunks_exact(rec::BYTES).take(usize::from(header.count));
    for (index, entry) in entries.enumerate() {
        let meta = decode_record(index, entry, payload_at)?;
        payload_at += padded(meta.payload_bytes());
        metas.push(meta);
    }
    let (stated, summed) = (header.payload_bytes, payload_at - BLOCK as u64);
    if stated != summed || summed > MAX_PAYLOAD_BYTES {
        return Err(BatchError::PayloadBytes { stated, summed });
    }
    Ok(metas)
}

fn decode_record(index: usize, entry: &[u8], payload_at: u64) -> Result<RecordMeta, BatchError> {
    let number = entry[rec::KIND];
    let kind = Kind::from_u8(number).ok_or(BatchError::Kind { index, kind: number })?;
    let flags = entry[rec::FLAGS];
    if flags != 0 {
        return Err(BatchError::Flags { index, flags });
    }
    let (offset, length) = (le::u64(entry, rec::OFFSET), le::u64(entry, rec::LENGTH));
    if length == 0 || offset.checked_add(length).is_none() {
        return Err(BatchError::Range { index, offset, length });
    }
    let payload = payload_bytes(kind, length);
    if payload > MAX_RECORD_BYTES {
        return Err(BatchError::TooLong { index, length });
    }
    let crc = le::u32(entry, rec::CRC);
    if payload == 0 && crc != 0 {
        return Err(BatchError::StrayChecksum { index });
    }
    Ok(RecordMeta { kind, volume: VolumeId(le::u16(entry, rec::VOLUME)), crc, offset, length, payload_at })
}

/// Whether the payload in `body`, the bytes of the whole batch, is the one that was logged. True without a payload.
pub fn payload_ok(meta: &RecordMeta, body: &[u8]) -> bool {
    let length = meta.payload_bytes();
    if length == 0 {
        return true;
    }
    let range = usize::try_from(meta.payload_at).ok().zip(usize::try_from(length).ok());
    let payload = range.and_then(|(at, length)| body.get(at..)?.get(..length));
    payload.is_some_and(|payload| crc32fast::hash(payload) == meta.crc)
}

/// The records that `metas`, the first of this batch's, tell of; payloads share the memory of `body`. Nothing is
/// checked here: see [`payload_ok`].
///
/// # Panics
/// If `body` is shorter than [`BatchHeader::bytes`]: the caller has read too little.
pub fn records(header: &BatchHeader, metas: &[RecordMeta], body: &Payload) -> Vec<Record> {
    let record = |(index, meta): (usize, &RecordMeta)| Record {
        lsn: header.lsn(index),
        volume: meta.volume,
        kind: meta.kind,
        offset: meta.offset,
        length: meta.length,
        crc: meta.crc,
        payload: match meta.payload_bytes() {
            0 => Payload::empty(),
            length => body.slice(meta.payload_at as usize, length as usize),
        },
    };
    metas.iter().enumerate().map(record).collect()
}

#[cfg(test)]
mod tests;
