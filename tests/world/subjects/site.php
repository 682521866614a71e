<?php
if ($_SERVER["REQUEST_URI"] !== "/text.txt") {
    http_response_code(404);
    exit;
}
header("Content-Type: text/plain");
echo "some text that a server sends\n";
