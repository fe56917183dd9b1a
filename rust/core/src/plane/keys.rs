//! A peer's data keys: up to three to receive with, one of all to send with.
//!
//! The two halves of each lie apart, for they are used on different threads. The sending side knows
//! which pairs there are, and the receiving side follows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Nanos;
use crate::aead::OpenError;
use crate::cipher::MATERIAL_LEN;
use crate::format::{Format, Opener, Sealer};
use crate::header::Header;
use crate::packet::{LocalPool, Packet};

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoKey,
    Malformed,
    Replayed,
    NotAuthentic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    Unknown,
    Exists,
    KeyId,
}

/// The sending halves, oldest first.
#[derive(Default)]
pub struct SendingKeys {
    keys: Vec<SendingKey>,
    sending: Option<u64>,
}

pub struct SendingKey {
    handle: u64,
    pub key_id: u8,
    pub sealer: Sealer,
    /// Cleared when another pair has taken the key id and this one only goes on sending.
    receives: bool,
    reported: Arc<AtomicBool>,
}

/// The receiving halves.
#[derive(Default)]
pub struct ReceivingKeys {
    keys: Vec<ReceivingKey>,
    /// The pair that is sent with.
    sending: Option<u64>,
}

struct ReceivingKey {
    handle: u64,
    key_id: u8,
    opener: Opener,
    reported: Arc<AtomicBool>,
}

pub fn insert(
    (sending, receiving): (&mut SendingKeys, &mut ReceivingKeys),
    handle: u64,
    key_id: u8,
    format: Format,
    encrypt: &[u8; MATERIAL_LEN],
    decrypt: &[u8; MATERIAL_LEN],
) -> Result<(), KeyError> {
    if key_id > MAX_KEY_ID {
        return Err(KeyError::KeyId);
    }
    if sending.has(handle) {
        return Err(KeyError::Exists);
    }
    sending.make_room(key_id);
    let (sealer, opener) = format.keys(encrypt, decrypt);
    let reported = Arc::new(AtomicBool::new(false));
    sending.keys.push(SendingKey { handle, key_id, sealer, receives: true, reported: reported.clone() });
    receiving.follow(sending);
    receiving.keys.push(ReceivingKey { handle, key_id, opener, reported });
    Ok(())
}

/// Forgets a pair; one that is gone already is no error.
pub fn remove((sending, receiving): (&mut SendingKeys, &mut ReceivingKeys), handle: u64) {
    sending.keys.retain(|key| key.handle != handle);
    sending.sending = sending.sending.filter(|&sending| sending != handle);
    receiving.follow(sending);
}

/// Sends with this pair from now on.
pub fn swap(
    (sending, receiving): (&mut SendingKeys, &mut ReceivingKeys),
    handle: u64,
) -> Result<(), KeyError> {
    if !sending.has(handle) {
        return Err(KeyError::Unknown);
    }
    sending.sending = Some(handle);
    sending.drop_useless();
    receiving.follow(sending);
    Ok(())
}

impl SendingKeys {
    /// The key to send with.
    pub fn current(&mut self) -> Option<&mut SendingKey> {
        let sending = self.sending?;
        self.keys.iter_mut().find(|key| key.handle == sending)
    }

    fn has(&self, handle: u64) -> bool {
        self.keys.iter().any(|key| key.handle == handle)
    }

    /// For a new pair, which displaces one of its key id and, of too many, the oldest.
    fn make_room(&mut self, key_id: u8) {
        self.keys.iter_mut().filter(|key| key.key_id == key_id).for_each(|key| key.receives = false);
        self.drop_useless();
        if self.keys.iter().filter(|key| key.receives).count() == MAX_RECEIVING
            && let Some(oldest) = self.keys.iter().position(|key| Some(key.handle) != self.sending)
        {
            self.keys.remove(oldest);
        }
    }

    fn drop_useless(&mut self) {
        let sending = self.sending;
        self.keys.retain(|key| key.receives || Some(key.handle) == sending);
    }
}

impl SendingKey {
    /// Its handle, once, when it is nearly used up.
    pub fn newly_worn(&self) -> Option<u64> {
        (self.sealer.is_worn() && !self.reported.swap(true, Ordering::Relaxed)).then_some(self.handle)
    }
}

impl ReceivingKeys {
    /// The inner packet of a datagram, whether it is the newest of its key, and the handle of the pair that
    /// is sent with, once, when the peer has nearly used up its half.
    pub fn open(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool, Option<u64>), Refusal> {
        let key_id = header.key_id();
        let key = self.keys.iter_mut().find(|key| key.key_id == key_id).ok_or(Refusal::NoKey)?;
        let (packet, newest) = key.opener.open(header, datagram, now, pool).map_err(Refusal::from)?;
        let worn = key.opener.is_worn()
            && Some(key.handle) == self.sending
            && !key.reported.swap(true, Ordering::Relaxed);
        Ok((packet, newest, worn.then_some(key.handle)))
    }

    fn follow(&mut self, sending: &SendingKeys) {
        self.sending = sending.sending;
        self.keys.retain(|key| sending.keys.iter().any(|pair| pair.handle == key.handle && pair.receives));
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Refusal {
        match error {
            OpenError::NoKey => Refusal::NoKey,
            OpenError::Malformed => Refusal::Malformed,
            OpenError::Replayed => Refusal::Replayed,
            OpenError::NotAuthentic => Refusal::NotAuthentic,
        }
    }
}

const MAX_KEY_ID: u8 = 7;
const MAX_RECEIVING: usize = 3;
