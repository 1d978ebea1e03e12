//! The fake GPU's memory: allocations far from each other, so that what goes beyond one is noticed.

use std::collections::BTreeMap;

/// Where the first allocation lies: no address of the host's.
const FIRST: u64 = 0x7_0000_0000_0000;

/// Nothing is put between the end of one allocation and the beginning of the next for at least this long, bytes.
const GAP: u64 = 1 << 20;

#[derive(Debug)]
pub struct Memory {
    allocations: BTreeMap<u64, Vec<u8>>,
    next: u64,
    pub total: usize,
}

/// There is no room for so much.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// An address at which nothing is.
#[derive(Debug, PartialEq, Eq)]
pub struct IllegalAddress(pub u64);

impl Memory {
    pub fn new(total: usize) -> Self {
        Self { allocations: BTreeMap::new(), next: FIRST, total }
    }

    pub fn free(&self) -> usize {
        self.total - self.allocations.values().map(Vec::len).sum::<usize>()
    }

    pub fn allocate(&mut self, bytes: usize) -> Result<u64, OutOfMemory> {
        if bytes > self.free() {
            return Err(OutOfMemory);
        }
        let address = self.next;
        // Not zeros: what is read before it is written shows.
        self.allocations.insert(address, vec![0xFF; bytes]);
        self.next = (address + bytes as u64 + GAP).next_multiple_of(GAP);
        Ok(address)
    }

    pub fn release(&mut self, address: u64) -> Result<(), IllegalAddress> {
        self.allocations.remove(&address).map(drop).ok_or(IllegalAddress(address))
    }

    pub fn bytes(&self, address: u64, count: usize) -> Result<&[u8], IllegalAddress> {
        let found = self.allocations.range(..=address).next_back();
        let slice = found.and_then(|(start, bytes)| {
            let from = usize::try_from(address - start).ok()?;
            bytes.get(from..from.checked_add(count)?)
        });
        slice.ok_or(IllegalAddress(address))
    }

    pub fn bytes_mut(&mut self, address: u64, count: usize) -> Result<&mut [u8], IllegalAddress> {
        let found = self.allocations.range_mut(..=address).next_back();
        let slice = found.and_then(|(start, bytes)| {
            let from = usize::try_from(address - start).ok()?;
            bytes.get_mut(from..from.checked_add(count)?)
        });
        slice.ok_or(IllegalAddress(address))
    }

    /// A number of 4 or 8 bytes; its place must be a multiple of that.
    pub fn number(&self, address: u64, bytes: usize) -> Result<u64, IllegalAddress> {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(self.bytes(aligned(address, bytes)?, bytes)?);
        Ok(u64::from_le_bytes(number))
    }

    pub fn set_number(&mut self, address: u64, bytes: usize, number: u64) -> Result<(), IllegalAddress> {
        self.bytes_mut(aligned(address, bytes)?, bytes)?.copy_from_slice(&number.to_le_bytes()[..bytes]);
        Ok(())
    }
}

fn aligned(address: u64, bytes: usize) -> Result<u64, IllegalAddress> {
    if address.is_multiple_of(bytes as u64) { Ok(address) } else { Err(IllegalAddress(address)) }
}
