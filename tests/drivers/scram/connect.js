// connect.js HOST PORT USER PASSWORD DATABASE: the median of ten connects in milliseconds, or the driver's refusal.
const { Client } = require("pg");
const [host, port, user, password, database] = process.argv.slice(2);

async function timed() {
  const began = process.hrtime.bigint();
  const client = new Client({ host, port: Number(port), user, password, database, ssl: false });
  await client.connect();
  await client.end();
  return Number(process.hrtime.bigint() - began) / 1e6;
}

(async () => {
  try {
    await timed();
    const taken = [];
    for (let i = 0; i < 10; i++) taken.push(await timed());
    taken.sort((a, b) => a - b);
    console.log(((taken[4] + taken[5]) / 2).toFixed(1));
  } catch (refusal) {
    console.log(`refused: ${refusal.message.split("\n")[0]}`);
    process.exit(0);
  }
})();
