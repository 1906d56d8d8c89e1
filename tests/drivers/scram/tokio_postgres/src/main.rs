//! `scram-connect HOST PORT USER PASSWORD DATABASE`: the median of ten connects in milliseconds, or the driver's refusal.

use std::error::Error;
use std::time::Instant;

use tokio_postgres::{Config, NoTls};

async fn timed(config: &Config) -> Result<f64, tokio_postgres::Error> {
    let began = Instant::now();
    let (client, connection) = config.connect(NoTls).await?;
    drop(client);
    connection.await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, user, password, database] = given.as_slice() else {
        return Err("HOST PORT USER PASSWORD DATABASE".into());
    };
    let mut config = Config::new();
    config.host(host).port(port.parse()?).user(user).password(password).dbname(database);
    let mut taken = Vec::new();
    for _ in 0..11 {
        match timed(&config).await {
            Ok(milliseconds) => taken.push(milliseconds),
            Err(refusal) => {
                println!("refused: {}", refusal.source().map_or_else(|| refusal.to_string(), ToString::to_string));
                return Ok(());
            }
        }
    }
    // The first is a rehearsal.
    taken.remove(0);
    taken.sort_by(f64::total_cmp);
    println!("{:.1}", f64::midpoint(taken[4], taken[5]));
    Ok(())
}
