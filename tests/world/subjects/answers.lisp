(format t "ready~%") (finish-output)
(loop for line = (read-line *standard-input* nil)
      while line
      do (let ((parts (loop for n below 2000 collect (format nil "~a~d" (string-upcase line) n))))
           (sb-ext:gc)
           (format t "~d ~a~%" (reduce #'+ (mapcar #'length parts)) (first (sort parts #'string<)))
           (finish-output)))
