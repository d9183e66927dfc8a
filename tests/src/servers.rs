//! Servers of the "outside": a web server, and echo over TCP and UDP.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Port of the web server.
pub const HTTP_PORT: u16 = 80;
/// Port of both echo servers (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// Port where nobody listens (RFC 863's, unused).
pub const REFUSED_PORT: u16 = 9;

/// What `GET /hello` answers.
pub const HELLO: &str = "hello from outside\n";

/// Starts a web server on a listening socket; it runs until the process ends.
///
/// `GET /hello` is answered with [`HELLO`], `GET /from` with the client's
/// address, any other GET with the file of that name in `dir`; a PUT is stored
/// there.
pub fn http(listener: TcpListener, dir: &Path) {
    let dir = dir.to_owned();
    serve(listener, move |stream| http_connection(&stream, &dir));
}

/// Starts all servers, in the network namespace of the calling thread, on all
/// its addresses. They run until the process ends.
///
/// # Errors
/// When a port cannot be listened on.
pub fn start(dir: &Path) -> Result<()> {
    http(TcpListener::bind(("::", HTTP_PORT)).context("web server")?, dir);
    let echo = TcpListener::bind(("::", ECHO_PORT)).context("TCP echo server")?;
    serve(echo, |stream| io::copy(&mut &stream, &mut &stream).map(|_| ()));
    let echo = UdpSocket::bind(("::", ECHO_PORT)).context("UDP echo server")?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((count, from)) = echo.recv_from(&mut buffer) {
            // A client that has gone is no fault of the server's.
            echo.send_to(&buffer[..count], from).ok();
        }
    });
    Ok(())
}

fn serve<F>(listener: TcpListener, handle: F)
where
    F: Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
{
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            // Errors are the client's to see: its connection ends.
            std::thread::spawn(move || handle(stream).ok());
        }
    });
}

fn http_connection(stream: &TcpStream, dir: &Path) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
    let (method, path) = (method.to_owned(), path.to_owned());
    let mut length = 0;
    let mut expects = false;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "expect" => expects = true,
            _ => {}
        }
    }
    let mut out = stream;
    let Some(file) = file_of(&path, dir) else {
        return reply(out, "400 Bad Request", b"");
    };
    match (method.as_str(), path.as_str()) {
        ("GET", "/hello") => reply(out, "200 OK", HELLO.as_bytes()),
        ("GET", "/from") => reply(out, "200 OK", stream.peer_addr()?.to_string().as_bytes()),
        ("GET", _) => match File::open(file) {
            Ok(mut file) => {
                let length = file.metadata()?.len();
                write!(out, "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
                io::copy(&mut file, &mut out).map(|_| ())
            }
            Err(_) => reply(out, "404 Not Found", b""),
        },
        ("PUT", _) => {
            if expects {
                out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let stored = io::copy(&mut reader.take(length), &mut File::create(file)?)?;
            reply(out, "201 Created", stored.to_string().as_bytes())
        }
        _ => reply(out, "405 Method Not Allowed", b""),
    }
}

/// The file behind a path; none for a name with a directory in it.
fn file_of(path: &str, dir: &Path) -> Option<PathBuf> {
    let name = path.strip_prefix('/')?;
    (!name.contains('/') && name != "..").then(|| dir.join(name))
}

fn reply(mut stream: &TcpStream, status: &str, body: &[u8]) -> io::Result<()> {
    write!(stream, "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    stream.write_all(body)
}

#[cfg(test)]
mod unit {
    use std::path::{Path, PathBuf};

    use super::file_of;

    #[test]
    fn files_stay_in_their_directory() {
        let dir = Path::new("/www");
        assert_eq!(file_of("/blob", dir), Some(PathBuf::from("/www/blob")));
        for path in ["blob", "/..", "/../etc/passwd", "/a/b"] {
            assert_eq!(file_of(path, dir), None, "{path}");
        }
    }
}
