//! The client's side of NBD, as far as images need it: one export, one request at a time, structured replies.
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>)

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

const INIT_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
/// Fixed newstyle, and no padding behind the old answer.
const CLIENT_FLAGS: u32 = 3;
const OPTION_GO: u32 = 7;
const OPTION_STRUCTURED_REPLY: u32 = 8;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Longest answer to an option that is read.
const OPTION_REPLY_BYTES_MAX: u32 = 4096;
const CHUNK_DONE: u16 = 1;
const CHUNK_DATA: u16 = 1;
const CHUNK_HOLE: u16 = 2;
const CHUNK_ERROR: u16 = 1 << 15;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

/// A connection to a server with one export.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    size_bytes: u64,
    cookie: u64,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD server broke the protocol: {what}"))
}

impl Client {
    /// Agrees on the nameless export.
    ///
    /// # Errors
    /// The server is gone, refuses, or speaks another dialect.
    pub fn new(stream: UnixStream) -> io::Result<Client> {
        let mut client = Client { stream, size_bytes: 0, cookie: 0 };
        if client.u64()? != INIT_MAGIC || client.u64()? != OPTION_MAGIC {
            return Err(wrong("it does not greet as one of the fixed newstyle"));
        }
        if client.u16()? & 1 == 0 {
            return Err(wrong("it is not one of the fixed newstyle"));
        }
        client.stream.write_all(&CLIENT_FLAGS.to_be_bytes())?;
        client.option(OPTION_STRUCTURED_REPLY, &[])?;
        // No name, no wishes.
        client.option(OPTION_GO, &[0; 6])?;
        Ok(client)
    }

    /// Bytes of the export.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut message = OPTION_MAGIC.to_be_bytes().to_vec();
        message.extend_from_slice(&option.to_be_bytes());
        message.extend_from_slice(&(data.len() as u32).to_be_bytes());
        message.extend_from_slice(data);
        self.stream.write_all(&message)?;
        loop {
            if self.u64()? != OPTION_REPLY_MAGIC || self.u32()? != option {
                return Err(wrong("an answer to another option"));
            }
            let (kind, len) = (self.u32()?, self.u32()?);
            if len > OPTION_REPLY_BYTES_MAX {
                return Err(wrong("an endless answer"));
            }
            let mut answer = vec![0; len as usize];
            self.stream.read_exact(&mut answer)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO => {
                    if let [high, low, size @ ..] = &answer[..]
                        && u16::from_be_bytes([*high, *low]) == INFO_EXPORT
                        && let Some(size) = size.first_chunk()
                    {
                        self.size_bytes = u64::from_be_bytes(*size);
                    }
                }
                kind if kind & REPLY_ERROR != 0 => {
                    let text = String::from_utf8_lossy(&answer).into_owned();
                    return Err(io::Error::other(format!("the NBD server refuses option {option}: {text}")));
                }
                _ => {}
            }
        }
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        head[16..24].copy_from_slice(&offset.to_be_bytes());
        head[24..].copy_from_slice(&len.to_be_bytes());
        self.stream.write_all(&head)?;
        self.stream.write_all(data)
    }

    /// Fills `into` with what the image has from `offset` on. False if all of it is zero and the server knew it.
    ///
    /// # Errors
    /// The image cannot be read there, or the server is gone.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<bool> {
        self.request(READ, offset, into.len() as u32, &[])?;
        let mut data = false;
        self.chunks(|client, kind, len| {
            let at = client.u64()?.checked_sub(offset).ok_or_else(|| wrong("data from elsewhere"))?;
            let len = match kind {
                CHUNK_HOLE => client.u32()?,
                _ => len.checked_sub(8).ok_or_else(|| wrong("a chunk without an offset"))?,
            };
            let part =
                usize::try_from(at).ok().and_then(|at| into.get_mut(at..at.checked_add(len as usize)?));
            let part = part.ok_or_else(|| wrong("data from elsewhere"))?;
            if kind == CHUNK_HOLE {
                part.fill(0);
                return Ok(());
            }
            data = true;
            client.stream.read_exact(part)
        })?;
        Ok(data)
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// The image cannot be written there, or the server is gone.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.request(WRITE, offset, bytes.len() as u32, bytes)?;
        self.chunks(|_, _, _| Err(wrong("data in answer to a write")))
    }

    /// Makes what was written stable.
    ///
    /// # Errors
    /// The image cannot be flushed, or the server is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(FLUSH, 0, 0, &[])?;
        self.chunks(|_, _, _| Err(wrong("data in answer to a flush")))
    }

    /// Says goodbye: the server closes the image.
    ///
    /// # Errors
    /// The server is gone.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.request(DISCONNECT, 0, 0, &[])
    }

    /// Reads the answer to the last request; `content` reads what a chunk of data or a hole holds.
    fn chunks(&mut self, mut content: impl FnMut(&mut Client, u16, u32) -> io::Result<()>) -> io::Result<()> {
        loop {
            let magic = self.u32()?;
            if magic == SIMPLE_REPLY_MAGIC {
                let error = self.u32()?;
                self.check_cookie()?;
                return if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error as i32)) };
            }
            if magic != CHUNK_MAGIC {
                return Err(wrong("an answer that is none"));
            }
            let (flags, kind) = (self.u16()?, self.u16()?);
            self.check_cookie()?;
            let len = self.u32()?;
            match kind {
                0 if len == 0 => {}
                CHUNK_DATA | CHUNK_HOLE => content(self, kind, len)?,
                kind if kind & CHUNK_ERROR != 0 && (6..=OPTION_REPLY_BYTES_MAX).contains(&len) => {
                    let mut body = vec![0; len as usize];
                    self.stream.read_exact(&mut body)?;
                    let number = i32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    return Err(io::Error::from_raw_os_error(number));
                }
                _ => return Err(wrong("a chunk that was not asked for")),
            }
            if flags & CHUNK_DONE != 0 {
                return Ok(());
            }
        }
    }

    fn check_cookie(&mut self) -> io::Result<()> {
        if self.u64()? == self.cookie { Ok(()) } else { Err(wrong("an answer to another request")) }
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> io::Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
