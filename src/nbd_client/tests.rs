//! Against servers that say what a test wants them to say; real servers are in `tests/`.

use super::*;
use std::net::TcpListener;
use std::thread::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(5);

/// A server that runs `script` on its one connection.
fn server<F: FnOnce(std::net::TcpStream) + Send + 'static>(script: F) -> (Address, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    (address, std::thread::spawn(move || script(listener.accept().unwrap().0)))
}

fn option_reply(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    out.extend(7u32.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// Greets, takes a GO of an export of `name_length` bytes and accepts it: 1 MiB in blocks of 4096.
fn accept_go(stream: &mut std::net::TcpStream, name_length: usize) {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
    let mut asked = vec![0; 4 + 16 + 4 + name_length + 4];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(&asked[..4], &[0, 0, 0, 3]);
    let export = [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[1, 0x2d]].concat();
    let block = [&[0, 3][..], &4096u32.to_be_bytes(), &4096u32.to_be_bytes(), &(32u32 << 20).to_be_bytes()].concat();
    let replies = [option_reply(3, &export), option_reply(3, &block), option_reply(1, &[])].concat();
    stream.write_all(&replies).unwrap();
}

fn simple_reply(errno: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &errno.to_be_bytes(), &cookie.to_be_bytes(), data].concat()
}

#[test]
fn negotiates_and_takes_replies_in_any_order() {
    let (address, served) = server(|mut s| {
        accept_go(&mut s, 5);
        let mut requests = vec![0; 28 + 28 + 4096];
        s.read_exact(&mut requests).unwrap();
        assert_eq!(&requests[..8], &[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
        assert_eq!(&requests[28..36], &[0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1], "a write with FUA");
        assert!(requests[56..].iter().all(|b| *b == 7));
        s.write_all(&simple_reply(28, 2, &[])).unwrap();
        s.write_all(&simple_reply(0, 1, &[9; 4096])).unwrap();
    });
    let mut client = Client::connect(&address, "disk0", PATIENCE).unwrap();
    assert_eq!(*client.export(), Export { size: 1 << 20, block: 4096, flags: 0x12d });
    assert!(client.export().can_multi_conn() && !client.export().is_read_only());
    let read = client.submit(Request::Read { offset: 0, length: 4096 }).unwrap();
    let write = client.submit(Request::Write { offset: 8192, data: &[7; 4096], fua: true }).unwrap();
    let first = client.next_reply().unwrap();
    assert_eq!(first.cookie, write);
    assert!(first.result.unwrap_err().to_string().contains("write of 4096 bytes at 8192: ENOSPC"));
    let second = client.next_reply().unwrap();
    assert_eq!((second.cookie, second.result.unwrap()), (read, vec![9; 4096]));
    assert_eq!(client.outstanding(), 0);
    served.join().unwrap();
}

#[test]
fn a_refusal_carries_the_servers_words() {
    let (address, served) = server(|mut s| {
        s.write_all(b"NBDMAGICIHAVEOPT\0\x03").unwrap();
        let mut asked = vec![0; 4 + 16 + 4 + 3 + 4];
        s.read_exact(&mut asked).unwrap();
        s.write_all(&option_reply(1 << 31 | 6, b"no such export; there are: disk0")).unwrap();
    });
    let error = Client::connect(&address, "foo", PATIENCE).err().unwrap();
    assert_eq!(error.to_string(), "the NBD server refuses the export \"foo\": no such export; there are: disk0");
    served.join().unwrap();
}

#[test]
fn what_is_no_server_is_refused() {
    for greeting in
        [&b"HTTP/1.1 400 Bad Request"[..], b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0", b"NBDMAGICIHAVEOPT\0\0"]
    {
        let (address, served) = server(move |mut s| s.write_all(greeting).unwrap());
        assert!(matches!(Client::connect(&address, "", PATIENCE), Err(NbdError::Protocol { .. })));
        served.join().unwrap();
    }
    let (address, served) = server(drop);
    assert!(matches!(Client::connect(&address, "", PATIENCE), Err(NbdError::Closed)));
    served.join().unwrap();
}

#[test]
fn a_reply_to_nothing_or_half_a_reply_ends_the_connection() {
    for reply in [simple_reply(0, 99, &[]), vec![0xee; 16], simple_reply(0, 1, &[1; 100])] {
        let (address, served) = server(move |mut s| {
            accept_go(&mut s, 0);
            let mut request = [0; 28];
            s.read_exact(&mut request).unwrap();
            s.write_all(&reply).unwrap();
        });
        let mut client = Client::connect(&address, "", PATIENCE).unwrap();
        assert!(matches!(client.read(0, 4096), Err(NbdError::Protocol { .. } | NbdError::Closed)));
        assert!(matches!(client.submit(Request::Flush), Err(NbdError::Closed)));
        served.join().unwrap();
    }
}

#[test]
fn a_late_answer_is_waited_for_again() {
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let (address, served) = server(move |mut s| {
        accept_go(&mut s, 0);
        let mut request = [0; 28];
        s.read_exact(&mut request).unwrap();
        asked.recv().unwrap();
        s.write_all(&simple_reply(0, 1, &[])).unwrap();
    });
    let mut client = Client::connect(&address, "", Duration::from_millis(200)).unwrap();
    client.submit(Request::Flush).unwrap();
    assert!(matches!(client.next_reply(), Err(NbdError::TimedOut)));
    ask.send(()).unwrap();
    let answer = (0..50).find_map(|_| client.next_reply().ok()).unwrap();
    assert!(answer.result.is_ok());
    served.join().unwrap();
}
