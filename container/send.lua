-- Every study that has become stable goes to the node; the node knows its own results, and what it has seen.
function OnStableStudy(studyId, tags, metadata)
  RestApiPost('/modalities/anomaly/store', DumpJson({ Resources = { studyId }, Synchronous = false }, true))
end
