# An origin of the garden on Puma.
require 'digest'
log = File.open(ENV['GARDEN_LOG'], 'ab')
log.sync = true
hex = ->(s) { h = s.to_s.b.unpack1('H*'); h.empty? ? '-' : h }
run(lambda do |env|
  body = env['rack.input'].read.to_s
  log.syswrite("#{hex.(env['REQUEST_METHOD'])} #{hex.(env['REQUEST_URI'])} #{body.bytesize} #{Digest::SHA256.hexdigest(body)[0, 16]}\n")
  [200, { 'x-garden' => 'seen', 'content-length' => '3' }, env['REQUEST_METHOD'] == 'HEAD' ? [] : ["ok\n"]]
end)
