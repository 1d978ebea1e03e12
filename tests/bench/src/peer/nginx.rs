//! nginx as a reverse proxy in front of one program, as its documentation advises: two workers, connections to the program
//! kept alive, no access log.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Writes the configuration into `dir`; its path.
pub(crate) fn configure(dir: &Path, listen: SocketAddr, upstream: SocketAddr) -> std::io::Result<PathBuf> {
    let at = dir.display();
    let text = format!(
        "daemon off;\nworker_processes 2;\nworker_rlimit_nofile 8192;\npid {at}/pid;\nerror_log {at}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 1000000000;\n\
         \x20 client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  fastcgi_temp_path {at}/fastcgi;\n\
         \x20 uwsgi_temp_path {at}/uwsgi;\n  scgi_temp_path {at}/scgi;\n\
         \x20 upstream program {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; }}\n\
         \x20 server {{\n    listen {listen} backlog=4096;\n\
         \x20   location / {{\n      proxy_pass http://program;\n      proxy_http_version 1.1;\n\
         \x20     proxy_set_header Connection \"\";\n      proxy_set_header Host $host;\n\
         \x20     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         \x20     proxy_set_header X-Forwarded-Proto $scheme;\n    }}\n  }}\n}}\n"
    );
    let path = dir.join("nginx.conf");
    fs::write(&path, text)?;
    Ok(path)
}
