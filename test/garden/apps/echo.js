// An origin of the garden on Node: records each request as its application sees it.
const http = require('http'), crypto = require('crypto'), fs = require('fs');
const fd = fs.openSync(process.env.GARDEN_LOG, 'a');
const hex = (s) => Buffer.from(s, 'latin1').toString('hex') || '-';
const server = http.createServer({ maxHeaderSize: 128 << 10 }, (req, res) => {
  const hash = crypto.createHash('sha256');
  let length = 0;
  req.on('data', (b) => { hash.update(b); length += b.length; });
  req.on('end', () => {
    fs.writeSync(fd, `${hex(req.method)} ${hex(req.url)} ${length} ${hash.digest('hex').slice(0, 16)}\n`);
    res.setHeader('x-garden', 'seen');
    res.end('ok\n');
  });
  req.on('error', () => {});
});
server.keepAliveTimeout = 60000;
server.listen(+process.env.GARDEN_PORT, '127.0.0.1');
