# Strings, arrays and tables too large for Ruby's own slots, and a library in C.
require "json"
require "zlib"
require "digest"

KEPT = []

def keep_text(n) = KEPT << "some text " * (500 + n)
def keep_array(n) = KEPT << Array.new(1000 + n) { |i| i }
def keep_table(n) = KEPT << (0..300 + n % 7).to_h { |i| [i, i] }
def keep_json(n) = KEPT << JSON.parse(JSON.generate({ "words" => ["text"] * 200, "n" => n }))
def keep_stream = KEPT << Zlib::Deflate.new
def keep_hash(n) = KEPT << Digest::SHA256.new.update("text #{n}")
def keep_symbol(n) = KEPT << "symbol_#{n}".to_sym

def order(n)
  keep_text(n)
  keep_array(n)
  keep_table(n)
  keep_symbol(n)
  keep_json(n) if n % 20 == 0
  keep_stream if n % 20 == 0
  keep_hash(n) if n % 20 == 0
end

def day(first) = (first...first + 100).each { |n| order(n) }

(0...2000).step(100) { |first| day(first) }
puts "kept #{KEPT.size}"
